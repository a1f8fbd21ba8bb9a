"""Life and death of a request around its compressions, and the think segment, on one engine.

The golden prompt's last token is declared the think start, a token of the golden output the think end.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside
from tests.engine.oracle import Oracle, Rule

P, R = 64, 8


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module")
def oracle(golden) -> Oracle:
    return Oracle(golden.path)


@pytest.fixture(scope="module")
def think_end(golden) -> int:
    """Position in the golden output of a token that stands there for the first time, between compressions 2 and 3."""
    output = golden.output
    return next(i for i in range(2 * P + R + 10, 3 * P + R - 10) if output[i] not in output[:i] + golden.prompt)


@pytest.fixture(scope="module")
def running(golden, think_end):
    config = replace(golden.config, think_start=golden.prompt[-1], think_end=golden.output[think_end])
    assert golden.prompt.count(golden.prompt[-1]) == 1
    with engine(golden.path, config) as started:
        yield started


@pytest.fixture(autouse=True)
def balanced(running, tmp_path):
    """After every test the idle server holds nothing."""
    yield
    assert_balanced(look_inside(running, tmp_path, [1]))


def run(running, prompt, sampling, **more):
    return running.generate(input_ids=prompt, sampling_params=sampling, **more)


@pytest.mark.parametrize("tokens", range(P + R - 2, P + R + 4))
def test_finish_by_length_around_the_first_compression(running, golden, tokens):
    result = run(running, golden.prompt, greedy(tokens))
    assert result["output_ids"] == golden.output[:tokens]
    receipt = result["meta_info"].get("rpc")
    # Entry g exists once token g+1 is being generated; the last token of a request leaves no entry.
    if tokens - 1 < P + R:
        assert receipt is None
    if tokens - 1 > P + R:
        assert receipt["compressions"] == 1
        assert receipt["held"] == tokens - 48


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_finish_by_stop_token_around_the_first_compression(running, golden, oracle, offset):
    position = next(i for i in range(40, 60) if golden.full[i] not in golden.full[:i])
    interval = position - R + offset
    result = run(
        running,
        golden.prompt,
        greedy(200, rpc={"interval": interval}, ignore_eos=False, stop_token_ids=[golden.full[position]]),
    )
    gaps, _ = oracle.gaps(golden.prompt, result["output_ids"], Rule(interval, R, 4))
    assert max(gaps) < 1e-3
    if offset >= 0:
        assert result["output_ids"] == golden.full[: position + 1]
        assert result["meta_info"]["finish_reason"]["type"] == "stop"


def test_aborted_at_any_moment(running, golden):
    rng = random.Random(5)

    async def one(index: int) -> dict:
        rid = f"abort-{index:03d}"
        call = running.async_generate(
            input_ids=golden.prompt,
            sampling_params=greedy(300, rpc={"interval": 9, "window": 4}),
            rid=rid,
        )
        task = asyncio.ensure_future(call)
        await asyncio.sleep(rng.uniform(0, 2.5))
        running.tokenizer_manager.abort_request(rid=rid)
        return await asyncio.wait_for(task, timeout=120)

    async def all_of_them() -> list[dict]:
        return await asyncio.gather(*(one(i) for i in range(24)))

    results = running.loop.run_until_complete(all_of_them())
    kinds = [result["meta_info"]["finish_reason"]["type"] for result in results]
    assert kinds.count("abort") >= 12
    compressed = [result for result in results if result["meta_info"].get("rpc", {}).get("compressions")]
    assert any(r["meta_info"]["finish_reason"]["type"] == "abort" for r in compressed)


def test_log_probabilities_come_along(running, golden):
    result = run(running, golden.prompt, greedy(200), return_logprob=True, top_logprobs_num=2)
    assert result["output_ids"] == golden.output[:200]
    logprobs = result["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in logprobs] == golden.output[:200]
    assert all(entry[0] <= 0 for entry in logprobs)
    assert len(result["meta_info"]["output_top_logprobs"]) == 200


def test_a_requests_own_window(running, golden, oracle):
    result = run(running, golden.prompt, greedy(200, rpc={"interval": 30, "window": 3, "ratio": 2.5}))
    gaps, _ = oracle.gaps(golden.prompt, result["output_ids"], Rule(30, 3, 2.5))
    assert max(gaps) < 1e-3
    assert result["meta_info"]["rpc"]["compressions"] == (199 - 3) // 30


class TestThinkSegment:
    def test_no_compression_after_the_end(self, running, golden, oracle, think_end):
        """Two compressions while thinking, none of the four that scope `all` has after the end."""
        result = run(running, golden.prompt, greedy(400, rpc={"scope": "think"}))
        output, receipt = result["output_ids"], result["meta_info"]["rpc"]
        assert output[: 3 * P + R + 1] == golden.output[: 3 * P + R + 1]
        assert receipt["compressions"] == 2
        assert receipt["evicted"] == 2 * 48
        gaps, _ = oracle.gaps(golden.prompt, output, Rule(P, R, 4, until=think_end + 1))
        assert max(gaps) < 1e-3

    def test_a_prompt_that_closes_its_own_segment(self, running, golden, think_end):
        prompt = [*golden.prompt, golden.output[think_end]]
        receipt = run(running, prompt, greedy(120, rpc={"scope": "think"}))["meta_info"]["rpc"]
        assert receipt["compressions"] == 0
        assert receipt["reason"] == "no think segment opened"

    def test_a_segment_the_model_opens(self, running, golden, oracle):
        """The start token is put into the output by a bias: entries before it, and it, are never evicted."""
        start = golden.prompt[-1]
        prompt = golden.prompt[:-1]
        sampling = greedy(150, rpc={"scope": "think", "interval": 40})
        without = run(running, prompt, sampling)
        assert without["meta_info"]["rpc"]["reason"] == "no think segment opened"
        opened = run(running, [*prompt, *without["output_ids"][:30]], {**sampling, "logit_bias": {str(start): 100.0}})
        output = opened["output_ids"]
        assert output[0] == start  # the bias makes every token the start token
        receipt = opened["meta_info"]["rpc"]
        assert receipt["compressions"] == (149 - 1 - R) // 40
        assert receipt["held"] == 150 - receipt["evicted"]
