"""Speculative decoding with compression: every token, receipt and log probability is that of a run without drafts."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside
from tests.engine.speculative import AHEAD, speculating

NAME, OTHER = "gqa_all_p64", "mha_all_p128"
#: What a receipt says of compressions, whatever the steps.
SAME = ("compressions", "generated", "held", "evicted", "late", "early")


def requests(golden: Golden) -> list[tuple[list[int], dict[str, Any]]]:
    """Prompts and sampling parameters: dates that fall anywhere in a step, short intervals, stops, no compression."""
    rng, n = random.Random(11), len(golden.output)
    prompts = [[rng.randrange(20, 500) for _ in range(20 + 7 * i)] for i in range(6)]
    stop = next(t for t in golden.output[150:] if t not in golden.output[:150])
    return [
        (golden.prompt, greedy(n)),
        (golden.prompt, greedy(n, {"enabled": False})),
        (golden.prompt, greedy(n, ignore_eos=False, stop_token_ids=[stop])),
        (golden.prompt, greedy(200, {"scope": "think"})),
        (prompts[0], greedy(200, {"interval": 9, "window": 4, "ratio": 3})),
        (prompts[1], greedy(170, {"interval": 5, "window": 8, "ratio": 2})),
        (prompts[2], greedy(230, {"interval": 37, "ratio": 8})),
        (prompts[3], greedy(150, {"interval": 20, "window": 2, "ratio": 2.5, "min_kept": 30})),
        (prompts[4], greedy(3)),
        (prompts[5], greedy(64 + 8 + 1)),
    ]


def run(running, golden: Golden) -> list[dict[str, Any]]:
    prompts, params = zip(*requests(golden), strict=True)
    return running.generate(
        input_ids=list(prompts), sampling_params=list(params), return_logprob=True, logprob_start_len=-1
    )


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    golden = Golden.load(goldens / NAME)
    config = replace(golden.config, think_start=golden.prompt[-1], think_end=golden.output[150])
    return replace(golden, config=config)


@pytest.fixture(scope="module")
def expected(golden) -> list[dict[str, Any]]:
    """Without drafts."""
    with engine(golden.path, golden.config, disable_overlap_schedule=True) as running:
        return run(running, golden)


def assert_same(results, expected) -> None:
    for result, wanted in zip(results, expected, strict=True):
        assert result["output_ids"] == wanted["output_ids"]
        receipt, before = (each["meta_info"].get("rpc") for each in (result, wanted))
        assert (receipt is None) == (before is None)
        if receipt is not None:
            assert {name: receipt[name] for name in SAME} == {name: before[name] for name in SAME}
        ours, theirs = (each["meta_info"]["output_token_logprobs"] for each in (result, wanted))
        assert [token for _, token, _ in ours] == [token for _, token, _ in theirs]
        assert max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)) < 1e-3


#: The draft is the model itself, or another; rows that a request verifies; what else differs.
SHAPES = {
    "itself, 4": (NAME, 4, {}),
    "itself, 4, overlap": (NAME, 4, AHEAD),
    "itself, 3, page 16": (NAME, 3, {"page_size": 16}),
    "another, 4": (OTHER, 4, {}),
    "itself, 2": (NAME, 2, {}),
    "itself, 2, overlap, page 16": (NAME, 2, {**AHEAD, "page_size": 16}),
    "itself, 5, chunked": (NAME, 5, {"chunked_prefill_size": 16}),
    "itself, 5, overlap, chunked": (NAME, 5, {**AHEAD, "chunked_prefill_size": 16}),
    "itself, 6, page 16, no tree": (NAME, 6, {"page_size": 16, "disable_radix_cache": True}),
    "another, 6, page 16": (OTHER, 6, {"page_size": 16}),
    "another, 6, overlap, page 16": (OTHER, 6, {**AHEAD, "page_size": 16}),
    "another, 3, overlap": (OTHER, 3, AHEAD),
    "itself, 4, tp 2": (NAME, 4, {"tp_size": 2}),
    "itself, 4, overlap, tp 2": (NAME, 4, {**AHEAD, "tp_size": 2}),
}
BY_DEFAULT = ("itself, 4", "itself, 4, overlap")


@pytest.fixture(
    scope="module", params=[pytest.param(s, marks=() if s in BY_DEFAULT else pytest.mark.long) for s in SHAPES]
)
def shape(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def running(shape, goldens, golden, expected):  # one engine at a time: `expected` has ended
    draft, tokens, more = SHAPES[shape]
    with speculating(golden.path, golden.config, goldens / draft, tokens, **more) as started:
        yield started


@pytest.fixture(autouse=True)
def balanced(request, tmp_path):
    yield
    if "running" in request.fixturenames:
        assert_balanced(look_inside(request.getfixturevalue("running"), tmp_path, [1]))


def test_together_as_without_drafts(running, golden, expected):
    results = run(running, golden)
    assert results[0]["output_ids"] == golden.output
    assert results[1]["output_ids"] == golden.full[: len(golden.output)]
    assert_same(results, expected)
    assert sum(result["meta_info"].get("rpc", {}).get("compressions", 0) for result in results) > 60


def test_most_steps_are_launched_ahead_under_overlap(running, shape, golden, tmp_path):
    """All but those before which a row may have come to its due date."""
    before = look_inside(running, tmp_path, [1])
    running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)))
    after = look_inside(running, tmp_path, [1])
    steps = sum(after["decodes"].values()) - sum(before["decodes"].values())
    ahead = after["launched_ahead"] - before["launched_ahead"]
    drafts = SHAPES[shape][1]
    if "overlap" in shape:
        assert steps - ahead <= 2 + golden.compressions * drafts
        assert ahead > steps / 2
    else:
        assert ahead == 0


def test_alone_after_a_radix_hit_and_streamed(running, golden):
    params = greedy(len(golden.output))
    for result in (
        running.generate(input_ids=golden.prompt, sampling_params=params),
        running.generate(input_ids=golden.prompt, sampling_params=params),
        list(running.generate(input_ids=golden.prompt, sampling_params=params, stream=True))[-1],
    ):
        assert result["output_ids"] == golden.output
        assert result["meta_info"]["rpc"]["compressions"] == golden.compressions


def test_a_receipt_tells_steps_before_and_after_the_first_compression(running, golden):
    result = running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)))
    receipt, meta = result["meta_info"]["rpc"], result["meta_info"]
    first = golden.config.interval + golden.config.window
    before, after = first / receipt["tokens_per_step"], receipt["tokens_per_step_compressed"]
    steps = round(before) + round((len(golden.output) - 1 - first) / after)
    assert abs(steps - meta["spec_verify_ct"]) <= 1
    assert 0 <= receipt["cuts"] <= golden.compressions


def test_aborted_at_any_moment(running, golden):
    rng = random.Random(5)

    async def one(index: int) -> dict:
        rid = f"abort-{index:03d}"
        params = greedy(300, rpc={"interval": 9, "window": 4})
        task = asyncio.ensure_future(running.async_generate(input_ids=golden.prompt, sampling_params=params, rid=rid))
        await asyncio.sleep(rng.uniform(0, 1.5))
        running.tokenizer_manager.abort_request(rid=rid)
        return await asyncio.wait_for(task, timeout=120)

    async def all_of_them() -> list[dict]:
        return await asyncio.gather(*(one(i) for i in range(16)))

    results = running.loop.run_until_complete(all_of_them())
    assert [result["meta_info"]["finish_reason"]["type"] for result in results].count("abort") >= 8
