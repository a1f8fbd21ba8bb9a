"""Drafts of a model, as a tree: every token, receipt and log probability is that of a run without drafts."""

from __future__ import annotations

import pytest

from tests.engine.engines import assert_balanced, greedy, look_inside
from tests.engine.speculative import AHEAD, branching, speculating
from tests.engine.test_speculative import NAME, OTHER, assert_same, expected, golden, run  # noqa: F401

#: The draft is the model itself, or another; rows that a request verifies; steps and branches; what else differs.
SHAPES = {
    "itself, 3x2, overlap, page 16": (NAME, 6, branching(3, 2, page_size=16, **AHEAD)),
    "itself, 3x2": (NAME, 6, branching(3, 2)),
    "itself, 3x2, whole": (NAME, 11, branching(3, 2)),
    "itself, 2x4, page 16, chunked": (NAME, 8, branching(2, 4, page_size=16, chunked_prefill_size=16)),
    "another, 4x3, overlap": (OTHER, 12, branching(4, 3, **AHEAD)),
    "another, 3x4, page 16": (OTHER, 10, branching(3, 4, page_size=16)),
    "itself, 3x2, tp 2": (NAME, 6, branching(3, 2, tp_size=2)),
}
BY_DEFAULT = ("itself, 3x2, overlap, page 16",)


@pytest.fixture(
    scope="module", params=[pytest.param(s, marks=() if s in BY_DEFAULT else pytest.mark.long) for s in SHAPES]
)
def shape(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def running(shape, goldens, golden, expected):  # noqa: F811
    draft, tokens, more = SHAPES[shape]
    with speculating(golden.path, golden.config, goldens / draft, tokens, **more) as started:
        yield started


@pytest.fixture(autouse=True)
def balanced(request, tmp_path):
    yield
    if "running" in request.fixturenames:
        assert_balanced(look_inside(request.getfixturevalue("running"), tmp_path, [1]))


def test_together_as_without_drafts(running, shape, golden, expected):  # noqa: F811
    results = run(running, golden)
    assert results[0]["output_ids"] == golden.output
    assert results[1]["output_ids"] == golden.full[: len(golden.output)]
    assert_same(results, expected)
    receipts = [result["meta_info"]["rpc"] for result in results if result["meta_info"].get("rpc")]
    assert sum(receipt["compressions"] for receipt in receipts) > 60
    assert sum(receipt["cuts"] for receipt in receipts) > (0 if "another" in shape else 10)


def test_alone_after_a_radix_hit(running, golden):  # noqa: F811
    for _ in range(2):
        result = running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)))
        assert result["output_ids"] == golden.output
        assert result["meta_info"]["rpc"]["compressions"] == golden.compressions
