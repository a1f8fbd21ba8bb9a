"""The shared prompt tree: its KV bytes never change, it is hit as in stock SGLang, and no compressed KV gets in."""

from __future__ import annotations

import pytest

from tests.engine.engines import Golden, assert_balanced, engine, flush, greedy, look_inside
from tests.engine.oracle import Oracle, Rule

P, R, C = 16, 4, 4
SHAPES = {"page 1": {}, "page 16": {"page_size": 16, "disable_overlap_schedule": True}}


@pytest.fixture(scope="module", params=SHAPES)
def served(request, goldens):
    golden = Golden.load(goldens / "gqa_all_p64")
    config = golden.config.__class__(interval=P, window=R, ratio=C, scope="all")
    page = SHAPES[request.param].get("page_size", 1)
    with engine(golden.path, config, **SHAPES[request.param]) as running:
        yield running, Oracle(golden.path), page


@pytest.fixture
def prompt():
    return [(i * 29 + i // 7) % 480 + 10 for i in range(203)]


def test_the_prompts_bytes_survive_twenty_compressions_of_eight_samples(served, prompt, tmp_path):
    running, oracle, page = served
    flush(running)
    running.generate(input_ids=prompt, sampling_params=greedy(1, rpc={"enabled": False}))
    before = look_inside(running, tmp_path, prompt)
    assert before["matched"] == len(prompt) // page * page

    tokens = 20 * P + R + 2
    samples = running.generate(input_ids=prompt, sampling_params=greedy(tokens, n=8))
    after = look_inside(running, tmp_path, prompt)
    assert [s["meta_info"]["rpc"]["compressions"] for s in samples] == [20] * 8
    assert after["digest"] == before["digest"]
    assert after["matched"] == before["matched"]
    assert_balanced(after)
    # A sample cannot hit its last prompt token, as in stock SGLang.
    hit = (len(prompt) - 1) // page * page
    assert [s["meta_info"]["cached_tokens"] for s in samples] == [hit] * 8
    assert max(oracle.gaps(prompt, samples[3]["output_ids"], Rule(P, R, C))[0]) < 1e-3


def test_a_follow_up_turn_is_as_on_a_fresh_server(served, prompt):
    """A compressed turn leaves its prompt in the tree and nothing behind it; an uncompressed one leaves all it did."""
    running, oracle, page = served
    for rpc, hit in ((None, len(prompt)), ({"enabled": False}, len(prompt) + 99)):
        flush(running)
        first = running.generate(input_ids=prompt, sampling_params=greedy(100, rpc=rpc))
        turn = [*prompt, *first["output_ids"], 33, 44, 55]
        second = running.generate(input_ids=turn, sampling_params=greedy(60))
        assert second["meta_info"]["cached_tokens"] == hit // page * page
        flush(running)
        fresh = running.generate(input_ids=turn, sampling_params=greedy(60))
        assert fresh["meta_info"]["cached_tokens"] == 0
        assert second["output_ids"] == fresh["output_ids"]
        assert max(oracle.gaps(turn, second["output_ids"], Rule(P, R, C))[0]) < 1e-3
