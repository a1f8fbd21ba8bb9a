"""`--rpc-reuse continue`, served: budget and due dates go on, to the last token, over requests that resend the text."""

from __future__ import annotations

import json

import pytest

from tests.engine import reusing
from tests.engine.engines import Golden, greedy
from tests.engine.oracle import Oracle, Rule

P, R = 64, 8
RULE = Rule(P, R, 4)
#: Round due dates: one before, on, one and R after, and in the windows of the next two.
CUTS = [71, 72, 73, 137]
MORE_CUTS = [40, 63, 64, 65, 74, 80, 100, 128, 133, 135, 136, 138, 144, 150, 201]
LENGTH = 400  #: of the recorded run


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module", params=reusing.SHAPES)
def served(request, golden):
    with reusing.serving(golden, "continue", request.param) as started:
        yield started


@pytest.fixture(autouse=True)
def balanced(request, tmp_path):
    yield
    reusing.check_and_flush(request, tmp_path)


def run(running, prompt, tokens, rpc=None, **more):
    """One request; where SGLang retracts, beside another with a shorter prompt: it is always the first that goes."""
    asked = greedy(tokens, rpc=rpc or {}, **more)
    if not running.retracts or "n" in more or tokens < 12:
        return running.generate(input_ids=prompt, sampling_params=asked)
    other = greedy(tokens + 40, rpc={"reuse": "off"})
    result = running.generate(input_ids=[prompt, [3, 5, 7]], sampling_params=[asked, other])[0]
    assert receipt(result)["retractions"] > 0
    # Before its first token it has nothing to save, and comes back as it came.
    assert receipt(result)["restored"] >= receipt(result)["retractions"] - 1
    return result


def receipt(result):
    return result["meta_info"]["rpc"]


@pytest.mark.parametrize("tokens", [*CUTS, *(pytest.param(cut, marks=pytest.mark.long) for cut in MORE_CUTS)])
def test_it_goes_on_as_the_one_long_request_to_the_end(served, golden, tokens):
    running, page = served
    first = run(running, golden.prompt, tokens)
    assert first["output_ids"] == golden.output[:tokens]
    compressions = receipt(first)["compressions"]
    held = len(golden.prompt) + receipt(first)["held"] - 1
    if compressions and held // page * page < held - (tokens - 1 - compressions * P - R):
        return  # within a page of its last compression nothing is left for others, who are compressed late
    text = golden.prompt + golden.output[:tokens]
    second = run(running, text, more := min(200, LENGTH - tokens))
    assert receipt(second)["continued"] == tokens
    assert second["meta_info"]["prompt_tokens"] == len(text)
    assert second["output_ids"] == golden.output[tokens : tokens + more]
    assert receipt(second)["late"] == 0
    done = receipt(first)["compressions"] + receipt(second)["compressions"]
    assert done == (tokens + more - 1 - R) // P
    assert receipt(second)["held"] == tokens + more - done * (P - P // 4)


def turns_of(running, given, tokens, **more):
    """Turns that are given text and generate; what the oracle is shown of them, and their receipts."""
    text, turns, receipts = [], [], []
    for ids, count in zip(given, tokens, strict=True):
        text = [*text, *ids]
        result = run(running, text, count, **more)
        assert result["meta_info"]["prompt_tokens"] == len(text)
        turns.append((list(ids), result["output_ids"]))
        receipts.append(receipt(result))
        text = [*text, *result["output_ids"]]
    return text, turns, receipts


TEXTS = ([5, 9, 33, 2, 71] * 4, [8, 19, 3] * 5, [61, 7])


@pytest.mark.parametrize("first", [70, 150, *(pytest.param(n, marks=pytest.mark.long) for n in (30, 90, 137))])
def test_with_text_between_it_is_the_loop_that_is_fed_it(served, golden, first):
    """What is put between is never compressed, and what is generated has one budget; the second turn is compressed by
    nobody, or once, or twice."""
    running, page = served
    tokens = (first, 20, 110, 90)
    _, turns, receipts = turns_of(running, (golden.prompt, *TEXTS), tokens)
    assert [r["continued"] for r in receipts] == [0, first, first + 20, first + 130]
    # With pages, one that ends within a page of its last compression leaves nothing: the next is compressed late.
    exact = next((i for i, r in enumerate(receipts) if r["late"] and page > 1), len(receipts))
    assert exact > 0
    assert max(map(max, Oracle(golden.path).continued(turns, RULE)[:exact])) < 1e-3
    if exact == len(receipts):
        assert sum(r["compressions"] for r in receipts) == (first + 220 - R) // P


def test_forks_and_forks_of_forks(served, golden):
    """Eight at once from one point of the tail, then two from the end of one of them, all past a date of their own."""
    running, _ = served
    thought = run(running, golden.prompt, 180)["output_ids"]
    text = [*golden.prompt, *thought[:170]]
    forks = running.generate(input_ids=[[*text, 40 + i, 7] for i in range(8)], sampling_params=[greedy(90, rpc={})] * 8)
    oracle = Oracle(golden.path)
    for i, fork in enumerate(forks):
        assert receipt(fork)["reused"] == 136
        assert receipt(fork)["continued"] == 170
        assert receipt(fork)["compressions"] == 1
        turns = [(golden.prompt, thought[:170]), ([40 + i, 7], fork["output_ids"])]
        if i % 4 == 1:
            assert max(map(max, oracle.continued(turns, RULE))) < 1e-3
            again = [*text, 40 + i, 7, *fork["output_ids"]]
            for more in ([], [9, 11, 13]):
                next_ = run(running, [*again, *more], 100)
                assert receipt(next_)["continued"] == 260
                # Of the page in which the fork's compressed entries end, no later turn may lack a part.
                if more:
                    told = [*turns, (more, next_["output_ids"])]
                else:
                    told = [turns[0], (turns[1][0], [*fork["output_ids"], *next_["output_ids"]])]
                assert max(map(max, oracle.continued(told, RULE))) < 1e-3
    samples = running.generate(input_ids=[*text, 40, 7], sampling_params=greedy(90, rpc={}, n=8))
    assert [s["output_ids"] for s in samples] == [forks[0]["output_ids"]] * 8


def test_eight_forks_hold_the_thought_once_until_each_is_compressed(served, golden, tmp_path):
    """The most that was ever taken of the pool is less than two copies, before the first fork's due date."""
    running, page = served
    if running.retracts:
        pytest.skip("a row that comes and goes says nothing of what is held")
    thought = run(running, golden.prompt, 140)["output_ids"]
    text = [*golden.prompt, *thought]
    flush_peak(running, tmp_path)
    forks = running.generate(input_ids=[[*text, 40 + i, 7] for i in range(8)], sampling_params=[greedy(30, rpc={})] * 8)
    assert all(receipt(fork)["compressions"] == 0 for fork in forks)
    assert all(receipt(fork)["reused"] == 136 for fork in forks)
    peak = flush_peak(running, tmp_path)
    thought_held = len(golden.prompt) + 40 + 4
    assert peak <= thought_held + 8 * (32 + 2 * page) + page


def flush_peak(running, tmp_path) -> int:
    """Most slots neither free nor evictable in any step since the last call."""
    path = tmp_path / "peak.json"
    running.collective_rpc("spy_on_peak", path=str(path))
    return json.loads(path.read_text())


def test_steps_shorter_than_an_interval_are_compressed_where_share_never_would(served, golden):
    running, _ = served
    text, done = list(golden.prompt), 0
    for _ in range(10):
        result = run(running, text, 30)
        text = [*text, *result["output_ids"]]
        done += receipt(result)["compressions"]
    assert text[len(golden.prompt) :] == golden.output[:300]
    assert done == (299 - R) // P


def test_one_request_may_share_where_the_server_continues(served, golden):
    running, _ = served
    thought = run(running, golden.prompt, 180)["output_ids"]
    text = [*golden.prompt, *thought, 9]
    shared = run(running, text, 20, {"reuse": "share"})
    assert (receipt(shared)["reused"], "continued" in receipt(shared)) == (136, False)
    apart = run(running, text, 20, {"ratio": 2})
    assert (receipt(apart)["reused"], receipt(apart)["continued"]) == (0, 0)
    assert receipt(apart)["not_reused"]
