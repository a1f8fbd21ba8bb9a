"""Models with recurrent layers that verify drafts: retracted requests, a layer of their own that drafts, and what it
would be without a part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine import engines, recurrent_drafts, speculative
from tests.engine.engines import assert_balanced, engine, look_inside
from tests.engine.recurrent import ON_A_CPU
from tests.engine.recurrent_drafts import AHEAD_WITHOUT_A_TREE, verifying
from tests.engine.speculative import speculating
from tests.engine.test_speculative import assert_same
from tests.engine.test_speculative_recurrent import RPC, assert_some_taken, compressed, known, run  # noqa: F401


@pytest.mark.parametrize(
    ("tokens", "drafts"), [(4, True), pytest.param(6, False, marks=pytest.mark.long)], ids=["chain", "earlier text"]
)
@pytest.mark.parametrize("ahead", [pytest.param({}, marks=pytest.mark.long), AHEAD_WITHOUT_A_TREE], ids=["", "overlap"])
@pytest.mark.parametrize("backed_up", [True, pytest.param(False, marks=pytest.mark.long)], ids=["", "computed anew"])
def test_retracted_over_and_over(known, tmp_path, tokens, drafts, backed_up, ahead):  # noqa: F811
    """Each comes back with the state of its newest token; without a backup, prefilled again, and compressed late."""
    made = known("qwen3_next")
    rpc = RPC if backed_up else replace(RPC, host_backup_gb=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_TEST_RETRACT", "1")
        patch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
        with verifying(made.model, rpc, made.draft if drafts else None, tokens, **ahead) as running:
            results = run(running)
            seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0
    receipts = compressed(results)
    assert sum(receipt["retractions"] for receipt in receipts) > 5, receipts
    assert (sum(receipt["restored"] for receipt in receipts) > 5) == backed_up
    on_time = [i for i, result in enumerate(results) if not (result["meta_info"].get("rpc") or {"late": 0})["late"]]
    assert len(on_time) == len(results) or not backed_up
    assert len(on_time) > 1
    assert_same([results[i] for i in on_time], [made.expected[i] for i in on_time])


@pytest.mark.parametrize("family", [pytest.param("qwen3_next", marks=pytest.mark.long), "qwen3_5_text"])
def test_mtp_that_a_model_brings_along(tmp_path, family):
    layer = recurrent_drafts.write_model(tmp_path / "layers", family, layers=2)
    model = recurrent_drafts.with_mtp(layer, tmp_path / "model")
    with engine(model, RPC, **ON_A_CPU) as running:
        expected = run(running)
    more = {"speculative_algorithm": "NEXTN", "speculative_draft_model_path": None}
    with speculating(model, RPC, model, 4, **more) as running:
        results = run(running)
        seen = look_inside(running, tmp_path, [1])
    assert_same(results, expected)
    assert_some_taken(results, 4)
    assert_balanced(seen)


@pytest.mark.parametrize(
    "without",
    [pytest.param(speculative.without_the_cut, marks=pytest.mark.long), recurrent_drafts.with_states_past_the_cut],
    ids=["the cut", "its state"],
)
def test_without_a_part_it_differs(known, monkeypatch, without):  # noqa: F811
    made = known("qwen3_next")
    monkeypatch.setattr(engines._spied(), "run_scheduler_process_func", staticmethod(without))
    monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "0")
    with speculating(made.model, RPC, made.draft, 4) as running:
        results = run(running)
    date = RPC.interval + RPC.window
    assert results[0]["output_ids"][:date] == made.expected[0]["output_ids"][:date]
    assert results[2]["output_ids"] == made.expected[2]["output_ids"]  # of the one without compression
    differing = [
        i for i, (a, b) in enumerate(zip(results, made.expected, strict=True)) if a["output_ids"] != b["output_ids"]
    ]
    assert len(differing) > 2
