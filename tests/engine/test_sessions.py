"""Streaming sessions: their turns are served uncompressed, on a server that compresses everything else."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside

TURN = 150  # two compressions, were it compressed


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module", params=[False, True], ids=["", "retracted"])
def running(request, golden):
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            patch.setenv("SGLANG_TEST_RETRACT", "1")
            patch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "37")
        with engine(golden.path, golden.config, enable_streaming_session=True) as started:
            yield started


@pytest.fixture
def session(running, tmp_path):
    """An open streaming session; closed on leaving, the server holds nothing."""
    opened = running.open_session(capacity_of_str_len=10**6, streaming=True)
    yield {"id": opened}
    running.close_session(opened)
    for _ in range(100):  # SGLang may put it off until it next looks at its sessions, once a second
        seen = look_inside(running, tmp_path, [1])
        if seen["free_rows"] == seen["rows"]:
            break
        time.sleep(0.1)
    assert_balanced(seen)


def test_two_turns_are_what_an_uncompressed_request_gives(running, golden, session):
    first = running.generate(input_ids=golden.prompt, sampling_params=greedy(TURN), session_params=session)
    assert first["output_ids"] == golden.full[:TURN]
    assert first["meta_info"]["rpc"]["reason"].startswith("not compressed because of session_params of a streaming")
    second = running.generate(input_ids=[33, 44, 55], sampling_params=greedy(TURN), session_params=session)
    # The last token's entry is never written: the turn begins after it.
    assert second["meta_info"]["cached_tokens"] == len(golden.prompt) + TURN - 1
    whole = [*golden.prompt, *first["output_ids"], 33, 44, 55]
    fresh = running.generate(input_ids=whole, sampling_params=greedy(TURN, rpc={"enabled": False}))
    assert second["output_ids"] == fresh["output_ids"]


def test_others_are_compressed_beside_it(running, golden, session):
    async def both():
        return await asyncio.gather(
            running.async_generate(input_ids=golden.prompt, sampling_params=greedy(400), session_params=session),
            *(running.async_generate(input_ids=golden.prompt, sampling_params=greedy(400)) for _ in range(3)),
        )

    in_session, *others = running.loop.run_until_complete(both())
    assert in_session["output_ids"] == golden.full[:400]
    assert [other["output_ids"] for other in others] == [golden.output] * 3
    assert [other["meta_info"]["rpc"]["compressions"] for other in others] == [6] * 3


def test_a_turn_that_asks_for_compression_is_refused_and_the_session_goes_on(running, golden, session):
    running.generate(input_ids=golden.prompt, sampling_params=greedy(20), session_params=session)
    with pytest.raises(ValueError, match=r"session_params of a streaming session does not work with RPC.*\[request"):
        running.generate(input_ids=[33], sampling_params=greedy(20, rpc={"interval": 32}), session_params=session)
    off = {"enabled": False}
    after = running.generate(input_ids=[33], sampling_params=greedy(20, rpc=off), session_params=session)
    assert after["meta_info"]["cached_tokens"] == len(golden.prompt) + 19
    assert after["meta_info"]["rpc"]["reason"] == "switched off by the request"


def test_the_turns_of_another_session_are_compressed(running, golden):
    opened = running.open_session(capacity_of_str_len=10**6)
    result = running.generate(
        input_ids=golden.prompt, sampling_params=greedy(400), session_params={"id": opened, "rid": None}
    )
    running.close_session(opened)
    assert result["output_ids"] == golden.output
