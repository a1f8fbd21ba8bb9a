"""`--rpc-reuse share`, served: what goes on from a compressed thought is what one long request would have been."""

from __future__ import annotations

import pytest

from tests.engine import reusing
from tests.engine.engines import Golden, flush, greedy
from tests.engine.oracle import Oracle, Rule

P, R = 64, 8


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module", params=reusing.SHAPES)
def served(request, golden):
    with reusing.serving(golden, "share", request.param) as started:
        yield started


@pytest.fixture(autouse=True)
def balanced(request, tmp_path):
    yield
    reusing.check_and_flush(request, tmp_path)


def run(running, prompt, tokens, rpc=None, **more):
    return running.generate(input_ids=prompt, sampling_params=greedy(tokens, rpc=rpc or {}), **more)


def receipt(result):
    return result["meta_info"]["rpc"]


@pytest.mark.parametrize("tokens", [71, 72, 73, 74, 75, 80, 81, 135, 137, 138, 150, 201])
def test_it_goes_on_as_the_one_long_request_until_the_next_due_date(served, golden, tokens):
    running, page = served
    first = run(running, golden.prompt, tokens)
    assert first["output_ids"] == golden.output[:tokens]
    compressions = receipt(first)["compressions"]
    due = (compressions + 1) * P + R
    text = golden.prompt + golden.output[:tokens]
    second = run(running, text, 40)
    assert second["meta_info"]["prompt_tokens"] == len(text)
    held = len(golden.prompt) + receipt(first)["held"] - 1
    within_a_page = held // page * page < held - (tokens - 1 - compressions * P - R)
    if not (compressions and within_a_page):
        more = min(40, max(0, due + 1 - tokens))
        assert second["output_ids"][:more] == golden.output[tokens : tokens + more]
    if compressions and not within_a_page:
        assert receipt(second)["reused"] == compressions * P + R
        assert receipt(second)["reused_held"] == compressions * P // 4 + R
        lost = compressions * (P - P // 4)
        assert second["meta_info"]["cached_tokens"] == min(held, len(text) - 1 - lost) // page * page + lost
    elif compressions:
        assert receipt(second)["reused"] == 0
        assert receipt(second)["not_reused"]


def test_turns_with_text_between_them_and_compressions_of_their_own(served, golden):
    """Three turns, the second and third compressed in their turn: as a loop that is fed the text."""
    running, _ = served
    text, turns = [], []
    for given, tokens in ((golden.prompt, 150), ([5, 9, 33, 2, 71] * 7, 170), ([8, 19, 3] * 11, 100)):
        text = [*text, *given]
        result = run(running, text, tokens)
        assert (receipt(result)["reused"] > 0) == (len(turns) > 0), receipt(result)
        assert receipt(result)["late"] == 0
        turns.append((given, result["output_ids"]))
        text = [*text, *result["output_ids"]]
    assert max(map(max, Oracle(golden.path).turns(turns, Rule(P, R, 4)))) < 1e-3


def test_forks_share_the_thought_and_differ_after_it(served, golden):
    """Eight at once from one point, and eight samples of one prompt."""
    running, page = served
    thought = run(running, golden.prompt, 180)["output_ids"]
    text = [*golden.prompt, *thought]
    forks = running.generate(input_ids=[[*text, 40 + i, 7] for i in range(8)], sampling_params=[greedy(90, rpc={})] * 8)
    assert (sum(receipt(fork)["retractions"] for fork in forks) > 0) == running.retracts
    oracle, rule = Oracle(golden.path), Rule(P, R, 4)
    for i, fork in enumerate(forks):
        assert receipt(fork)["reused"] == 136
        assert fork["meta_info"]["prompt_tokens"] - fork["meta_info"]["cached_tokens"] <= page + 2
        if i % 3 == 0:
            turns = [(golden.prompt, thought), ([40 + i, 7], fork["output_ids"])]
            assert max(map(max, oracle.turns(turns, rule))) < 1e-3
    samples = running.generate(input_ids=[*text, 40, 7], sampling_params=greedy(90, rpc={}, n=8))
    assert [s["output_ids"] for s in samples] == [forks[0]["output_ids"]] * 8
    assert all(receipt(s)["reused"] == 136 for s in samples)


def test_choices_are_weighed_after_the_thought(served, golden):
    """As the frontend's `select`: nothing is generated, log probabilities from two tokens before the prompt's end."""
    running, page = served
    thought = run(running, golden.prompt, 200)["output_ids"]
    text = [*golden.prompt, *thought, *range(60, 60 + 2 * page)]
    before = run(running, text, 0)
    assert receipt(before)["reused"] == 136
    ask = dict(return_logprob=True, logprob_start_len=len(text) - 2)
    choices = [run(running, [*text, choice, 44], 0, **ask) for choice in (33, 44, 55)]
    for choice, result in zip((33, 44, 55), choices, strict=True):
        assert receipt(result)["reused"] == 136
        logprobs = result["meta_info"]["input_token_logprobs"]
        assert [token for _, token, _ in logprobs] == [*text[-2:], choice, 44]
    one = run(running, text, 1, return_logprob=True, top_logprobs_num=1)
    best = one["output_ids"][0]
    asked = run(running, [*text, best], 0, **ask)["meta_info"]["input_token_logprobs"]
    assert asked[2][0] == pytest.approx(one["meta_info"]["output_token_logprobs"][0][0], abs=1e-4)
    early = run(running, text, 4, return_logprob=True, logprob_start_len=3)
    assert receipt(early)["not_reused"] == "log probabilities of what was compressed are asked for"
    assert len(early["meta_info"]["input_token_logprobs"]) == len(text) - 3


def test_apart_as_on_a_fresh_server(served, golden):
    running, _ = served
    thought = run(running, golden.prompt, 180)["output_ids"]
    text = [*golden.prompt, *thought, 9]
    for rpc, more in (
        ({"ratio": 2}, {}),
        ({"enabled": False}, {}),
        ({"reuse": "off"}, {}),
        ({}, {"cache_salt": "other"}),
    ):
        result = run(running, text, 20, rpc, **more)
        assert receipt(result).get("reused", 0) == 0
        flush(running)
        fresh = run(running, text, 20, rpc, **more)
        assert result["output_ids"] == fresh["output_ids"]
        assert fresh["meta_info"]["cached_tokens"] == 0
        run(running, golden.prompt, 180)


def test_streamed_chunks_say_how_many_tokens_the_prompt_has(served, golden):
    running, _ = served
    thought = run(running, golden.prompt, 180)["output_ids"]
    text = [*golden.prompt, *thought, 9]
    chunks = list(running.generate(input_ids=text, sampling_params=greedy(10, rpc={}), stream=True))
    assert len(chunks) > 1
    assert {chunk["meta_info"]["prompt_tokens"] for chunk in chunks} == {len(text)}


def test_a_request_that_names_compressed_kv_is_refused(served):
    running, _ = served
    with pytest.raises(ValueError, match="input_ids must be from 0 to 511, got 6917"):
        run(running, [1, 2, (3 << 61) + 5, 4], 4)


def test_counters(served, golden):
    running, _ = served
    before = running.get_server_info()["internal_states"][0]["rpc"]
    thought = run(running, golden.prompt, 180)["output_ids"]
    run(running, [*golden.prompt, *thought, 9], 10)
    after = running.get_server_info()["internal_states"][0]["rpc"]
    assert after["reused_requests"] - before["reused_requests"] == 1
    assert after["reused_tokens"] - before["reused_tokens"] == 136
    assert after["aliases"] == 1


def test_the_next_turn_of_a_session_is_given_real_ids(served, golden):
    """SGLang makes the turn's prompt of what the turn before was, ids that the tree knows by other names."""
    running, _ = served
    session = running.open_session(capacity_of_str_len=10**6)
    text, turns, rid = [], [], None
    for given, tokens in ((golden.prompt, 150), ([5, 9, 33, 2, 71] * 7, 100), ([8, 19, 3] * 11, 30)):
        result = run(running, given, tokens, session_params={"id": session, "rid": rid})
        rid = result["meta_info"]["id"]
        text = [*text, *given]
        assert result["meta_info"]["prompt_tokens"] == len(text)
        assert (receipt(result)["reused"] > 0) == (len(turns) > 0)
        turns.append((given, result["output_ids"]))
        text = [*text, *result["output_ids"]]
    running.close_session(session)
    assert max(map(max, Oracle(golden.path).turns(turns, Rule(P, R, 4)))) < 1e-3
