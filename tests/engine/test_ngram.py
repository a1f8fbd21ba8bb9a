"""Drafts that earlier text proposes, as a tree: every token, receipt and log probability is that of a run without."""

from __future__ import annotations

import pytest

from tests.engine import engines, speculative
from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside
from tests.engine.speculative import AHEAD, drafting, speculating
from tests.engine.test_speculative import assert_same, expected, golden, run  # noqa: F401
from tests.engine.test_text import model  # noqa: F401

#: Rows that a request verifies; what else differs. Where pages have several slots, SGLang takes branches on GPUs alone.
SHAPES = {
    "6": (6, {}),
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


@pytest.mark.long
def test_retracted_over_and_over(golden, tmp_path):  # noqa: F811
    n = len(golden.output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_TEST_RETRACT", "1")
        with speculating(golden.path, golden.config, None, 6) as running:
            results = running.generate(input_ids=[golden.prompt] * 2, sampling_params=[greedy(n)] * 2)
            seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert [result["output_ids"] for result in results] == [golden.output] * 2, receipts
    assert sum(receipt["restored"] for receipt in receipts) > 20
    assert {(r["compressions"], r["late"]) for r in receipts} == {(golden.compressions, 0)}


class TestControls:
    @pytest.mark.parametrize(
        "without",
        [
            speculative.without_accepted_queries,
            pytest.param(speculative.with_queries_by_position, marks=pytest.mark.long),
        ],
        ids=["accepted queries", "queries by row"],
    )
    def test_without_it_differs(self, goldens, golden, monkeypatch, without):  # noqa: F811
        plain = Golden.load(goldens / "gqa_all_p64")
        monkeypatch.setattr(engines._spied(), "run_scheduler_process_func", staticmethod(without))
        with engine(plain.path, plain.config, **drafting(None, 6)) as running:
            for _ in range(2):  # so that branches are proposed
                result = running.generate(input_ids=plain.prompt, sampling_params=greedy(len(plain.output)))
        date = plain.config.interval + plain.config.window
        assert result["output_ids"][: date + 1] == plain.output[: date + 1]
        assert result["output_ids"] != plain.output


@pytest.mark.long
def test_a_language_model_repeats_itself(model):  # noqa: F811
    """Its greedy texts do, of themselves: that is what this algorithm is for."""
    from sglang_rpc import RPCConfig

    config = RPCConfig(interval=64, window=8, ratio=4, scope="all")
    common = dict(skip_tokenizer_init=False)
    prompts = ["List vegetables, one by one:", "Once upon a time", "The numbers from one to ninety-nine: one, two,"]
    found = []
    for context in (
        engine(model, config, disable_overlap_schedule=True, **common),
        speculating(model, config, None, 8, **common),
    ):
        with context as running:
            found.append([running.generate(prompt=prompt, sampling_params=greedy(300)) for prompt in prompts])
    plain, drafted = found
    assert [result["text"] for result in drafted] == [result["text"] for result in plain]
    receipts = [result["meta_info"]["rpc"] for result in drafted]
    print([(r["compressions"], r["tokens_per_step"], r["tokens_per_step_compressed"]) for r in receipts])
    assert {receipt["compressions"] for receipt in receipts} == {4}
    assert all(receipt["tokens_per_step_compressed"] > 1.5 for receipt in receipts)
