"""Retracted over and over, and every output is that of a run never retracted. SGLANG_TEST_RETRACT retracts a request
every third step, whether or not memory is short."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside

PENALTIES = {"frequency_penalty": 0.3}


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module")
def config(golden):
    """Scope `all`, unless a request asks for `think`: it thinks from its first token to its 193rd, at the latest."""
    return replace(golden.config, think_start=golden.prompt[-1], think_end=golden.output[192])


def prompts(golden):
    """The golden prompt twice, and others that share its beginning."""
    return [golden.prompt, [*golden.prompt[:40], 5], [*golden.prompt[:33], 6], golden.prompt]


@pytest.fixture(scope="module")
def before(golden, config):
    """Never retracted: the outputs of `prompts`, and of requests whose answers are not compressed."""
    with engine(golden.path, config) as running:
        every = running.generate(input_ids=prompts(golden), sampling_params=greedy(len(golden.output)))
        answered = running.generate(**thinking(golden))
        return [result["output_ids"] for result in every], [result["output_ids"] for result in answered]


@pytest.fixture(scope="module")
def never_retracted(before):
    return before[0]


def thinking(golden):
    """The second has the shorter prompt, and soon the longer output, so it is always the first that is retracted."""
    params = [greedy(280, {"scope": "think"}), greedy(700)]
    return dict(input_ids=[golden.prompt, [*golden.prompt[:15], 5]], sampling_params=params)


SHAPES = {
    "default": {},
    "page_16": dict(page_size=16),
    "no_overlap": dict(disable_overlap_schedule=True),
    "mixed_chunks": dict(enable_mixed_chunk=True, chunked_prefill_size=16),
    "one_prefill": dict(prefill_max_requests=1),
    "no_radix": dict(disable_radix_cache=True),
}
BY_DEFAULT = ("default", "page_16")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.long) for name in SHAPES],
)
def running(request, golden, config, before):  # one engine at a time: the end of one kills every child
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_TEST_RETRACT", "1")
        with engine(golden.path, config, **SHAPES[request.param]) as started:
            yield started


@pytest.fixture(autouse=True)
def balanced(request, tmp_path):
    yield
    if "running" in request.fixturenames:
        seen = look_inside(request.getfixturevalue("running"), tmp_path, [1])
        assert_balanced(seen)
        assert seen["host_backup_bytes"] == 0


def test_two_hundred_retractions_change_no_token(running, golden, never_retracted):
    assert never_retracted[0] == golden.output
    retractions = 0
    while retractions < 200:
        results = running.generate(input_ids=prompts(golden), sampling_params=greedy(len(golden.output)))
        for result, expected in zip(results, never_retracted, strict=True):
            receipt = result["meta_info"]["rpc"]
            assert result["output_ids"] == expected, receipt
            assert receipt["compressions"] == golden.compressions
            assert receipt["late"] == 0
            assert receipt["restored"] >= receipt["retractions"] - 1  # before its first token there is nothing to keep
            retractions += receipt["retractions"]


def test_an_answer_comes_back_behind_its_own_thoughts(running, golden, before):
    """The tree holds the same text, uncompressed, beyond the prompt: none of it belongs into the restored row."""
    running.generate(input_ids=golden.prompt, sampling_params=greedy(280, {"enabled": False}))
    results = running.generate(**thinking(golden))
    receipt = results[0]["meta_info"]["rpc"]
    assert [result["output_ids"] for result in results] == before[1], receipt
    assert receipt["compressions"] >= 1
    assert receipt["held"] > 2 * golden.config.interval
    assert receipt["restored"] > 250 / 3  # in every third step to its end


def test_aborted_while_they_wait_to_come_back(running, golden):
    async def abort_most():
        tasks = [
            asyncio.create_task(
                running.async_generate(input_ids=prompt, sampling_params=greedy(len(golden.output)), rid=f"wait-{i}")
            )
            for i, prompt in enumerate(prompts(golden))
        ]
        await asyncio.sleep(1.0)
        for i in (1, 2, 3):
            running.tokenizer_manager.abort_request(rid=f"wait-{i}")
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = running.loop.run_until_complete(abort_most())
    assert results[0]["output_ids"] == golden.output


def test_log_probabilities_of_outputs_survive(running, golden):
    results = running.generate(
        input_ids=prompts(golden), sampling_params=greedy(150), return_logprob=True, logprob_start_len=-1
    )
    for result in results:
        logprobs = result["meta_info"]["output_token_logprobs"]
        assert [token for _, token, _ in logprobs] == result["output_ids"]
        assert len(logprobs) == 150
        assert all(value <= 0 for value, _, _ in logprobs)
