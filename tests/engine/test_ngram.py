"""Drafts that earlier text proposes, as a tree: every token, receipt and log probability is that of a run without."""

from __future__ import annotations

import pytest

from tests.engine.engines import assert_balanced, look_inside
from tests.engine.speculative import AHEAD, speculating
from tests.engine.test_speculative import assert_same, expected, golden, run  # noqa: F401

#: Rows that a request verifies; what else differs. Where pages have several slots, SGLang takes branches on GPUs alone.
SHAPES = {
    "6": (6, {"speculative_algorithm": "ngram"}),  # which SGLang takes in any case of letters
    "2": (2, {}),
    "12, chunked": (12, {"chunked_prefill_size": 16}),
    "5, page 16": (5, {"page_size": 16, "speculative_ngram_max_bfs_breadth": 1}),
    "6, tp 2": (6, {"tp_size": 2}),
    "4, deep": (4, {"speculative_ngram_match_type": "PROB", "speculative_ngram_max_trie_depth": 32}),
    "6, overlap": (6, AHEAD),
}
BY_DEFAULT = ("6",)


@pytest.fixture(
    scope="module", params=[pytest.param(s, marks=() if s in BY_DEFAULT else pytest.mark.long) for s in SHAPES]
)
def running(request, golden, expected):  # noqa: F811
    tokens, more = SHAPES[request.param]
    with speculating(golden.path, golden.config, None, tokens, **more) as started:
        yield started


@pytest.fixture(autouse=True)
def balanced(request, tmp_path):
    yield
    if "running" in request.fixturenames:
        assert_balanced(look_inside(request.getfixturevalue("running"), tmp_path, [1]))


def test_together_as_without_drafts(running, golden, expected):  # noqa: F811
    results = run(running, golden)
    assert results[0]["output_ids"] == golden.output
    assert_same(results, expected)


def test_a_text_that_comes_again_is_drafted_in_few_steps(running, golden, expected):  # noqa: F811
    """And still it is compressed on its dates, by the queries of what was accepted."""
    run(running, golden)
    results = run(running, golden)
    assert_same(results, expected)
    receipts = [result["meta_info"]["rpc"] for result in results if result["meta_info"].get("rpc")]
    assert sum(receipt["cuts"] for receipt in receipts) > 10
    often = [receipt for receipt in receipts if receipt["compressions"] > 1]
    assert len(often) > 4
    assert all(receipt["tokens_per_step_compressed"] > 1.5 for receipt in often)
