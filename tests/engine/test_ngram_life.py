"""Drafts that earlier text proposes, where rows come and go, on text that repeats itself, and without their parts."""

from __future__ import annotations

import pytest

from sglang_rpc import RPCConfig
from tests.engine import engines, speculative
from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside
from tests.engine.speculative import drafting, speculating
from tests.engine.test_text import model  # noqa: F401


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.mark.long
def test_retracted_over_and_over(golden, tmp_path):
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
    def test_without_it_differs(self, golden, monkeypatch, without):
        monkeypatch.setattr(engines._spied(), "run_scheduler_process_func", staticmethod(without))
        with engine(golden.path, golden.config, **drafting(None, 6)) as running:
            # Texts that part after the same tokens, so that branches are proposed.
            for rpc in ({"enabled": False}, {"interval": 32}, {"ratio": 2}, {"window": 4}, None):
                params = greedy(len(golden.output), rpc)
                result = running.generate(input_ids=golden.prompt, sampling_params=params)
        date = golden.config.interval + golden.config.window
        assert result["output_ids"][: date + 1] == golden.output[: date + 1]
        assert result["output_ids"] != golden.output


@pytest.mark.long
def test_a_language_model_repeats_itself(model):  # noqa: F811
    """Its greedy texts do, of themselves: that is what this algorithm is for."""
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
