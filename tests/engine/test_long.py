"""Longer than the pool, more requests than fit, and one that never can. One engine with a pool of 320 slots."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside

POOL = 320
P, R = 64, 8


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module")
def running(golden):
    think = dict(think_start=golden.prompt[-1], think_end=golden.output[3 * P])
    with engine(golden.path, replace(golden.config, **think), max_total_tokens=POOL) as started:
        yield started


@pytest.fixture(autouse=True)
def balanced(running, tmp_path):
    yield
    seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0


def prompts(golden, count):
    return [[*golden.prompt[:24], 5 + i] for i in range(count)]


def test_twelve_requests_of_three_times_the_pool_complete(running, golden):
    tokens = 3 * POOL - 30
    results = running.generate(input_ids=prompts(golden, 12), sampling_params=greedy(tokens))
    for result in results:
        receipt = result["meta_info"]["rpc"]
        assert len(result["output_ids"]) == tokens
        assert (receipt["late"], receipt["retractions"]) == (0, 0)
        assert receipt["compressions"] == (tokens - 1 - R) // P
    alone = running.generate(input_ids=prompts(golden, 12)[7], sampling_params=greedy(tokens))
    assert alone["output_ids"] == results[7]["output_ids"]


def test_one_that_cannot_fit_is_refused_at_once_with_its_numbers(running, golden):
    prompt = prompts(golden, 1)[0]
    room = POOL - len(prompt) - 2
    seconds = []
    for _ in range(3):  # other work on the machine may hold up one of them
        started = time.monotonic()
        with pytest.raises(ValueError, match="do not fit") as refused:
            running.generate(input_ids=prompt, sampling_params=greedy(1500))
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 1
    peak = ((1500 - R) // P - 1) * 16 + R + P
    for number in (1500, peak, len(prompt), POOL, room):
        assert str(number) in str(refused.value)
    most = int(re.search(r"ask for at most (\d+) new tokens", str(refused.value)).group(1))
    assert len(running.generate(input_ids=prompt, sampling_params=greedy(most))["output_ids"]) == most
    with pytest.raises(ValueError, match=f"{most + 1} new tokens do not fit"):
        running.generate(input_ids=prompt, sampling_params=greedy(most + 1))
    # What SGLang clips stays clipped: a request that is not compressed.
    result = running.generate(input_ids=prompt, sampling_params=greedy(1500, {"enabled": False}))
    assert len(result["output_ids"]) < POOL


def test_admission_counts_the_peak(running, golden, tmp_path):
    """As many run at once as peaks fit the pool, no fewer, and nobody is retracted."""
    tokens = 100  # peak 8 + 64 = 72, with the prompt 97: three fit, uncompressed two do
    results = running.generate(input_ids=prompts(golden, 6), sampling_params=greedy(tokens))
    assert [result["meta_info"]["rpc"]["retractions"] for result in results] == [0] * 6
    assert [len(result["output_ids"]) for result in results] == [tokens] * 6
    seen = look_inside(running, tmp_path, [1])
    assert seen["most_running"] >= 3


def test_memory_that_runs_out_is_met_by_early_compressions_first(running, golden):
    """Lengths nobody knows beforehand: SGLang's estimate admits too many."""
    tokens = 300
    results = running.generate(input_ids=prompts(golden, 8), sampling_params=greedy(tokens, ignore_eos=False))
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert [len(result["output_ids"]) for result in results] == [tokens] * 8
    assert sum(receipt["early"] for receipt in receipts) > 0
    for receipt in receipts:
        assert receipt["restored"] == receipt["retractions"]
        # Whatever came early, the budget of the last due date is what is held.
        due = (tokens - 1 - R) // P
        assert receipt["held"] <= due * 16 + R + P, receipt


def test_an_answer_ends_where_the_pool_does(running, golden):
    """The thinking ends at token 192; the answer is not compressed, and the request was allowed 600 tokens."""
    prompt = golden.prompt
    result = running.generate(input_ids=prompt, sampling_params=greedy(600, {"scope": "think"}))
    receipt = result["meta_info"]["rpc"]
    assert receipt["compressions"] in (2, 3)
    length = len(result["output_ids"])
    assert result["meta_info"]["finish_reason"]["type"] == "length"
    assert POOL - 40 <= len(prompt) + length - receipt["evicted"] <= POOL
