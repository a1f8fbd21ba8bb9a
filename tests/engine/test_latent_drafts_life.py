"""Drafts of models with latent attention (MLA) where rows come and go, of another kind of attention, and without a part
of RPC's."""

from __future__ import annotations

import pytest

from tests.engine import dense, engines, speculative
from tests.engine.engines import assert_balanced, engine, look_inside
from tests.engine.speculative import AHEAD, branching, drafting, speculating
from tests.engine.test_latent_drafts import RPC, another, expected, model, requests, run  # noqa: F401

#: Heads of another number and size than the latent model's, and the same vocabulary.
DENSE = dense.Dims(hidden=64, heads=2, kv_heads=1, wide=128, layers=2)


@pytest.fixture(scope="module")
def with_heads(tmp_path_factory):
    return dense.write_model(tmp_path_factory.mktemp("dense") / "model", dims=DENSE)


def outputs(results) -> list[list[int]]:
    return [result["output_ids"] for result in results]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"page_size": 16, **AHEAD}, id="chain"),
        pytest.param(branching(3, 2, page_size=16, **AHEAD), id="tree", marks=pytest.mark.long),
    ],
)
def test_retracted_over_and_over(model, expected, tmp_path, more):  # noqa: F811
    """SGLANG_TEST_RETRACT retracts a request every third step; each comes back with its latents, and its draft's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_TEST_RETRACT", "1")
        with speculating(model, RPC, model, 6 if "speculative_eagle_topk" in more else 4, **more) as running:
            results = run(running)
            seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert outputs(results) == outputs(expected), receipts
    assert sum(receipt.get("restored", 0) for receipt in receipts) > 10
    assert sum(receipt.get("late", 0) for receipt in receipts) == 0


@pytest.mark.long
def test_drafts_of_a_model_with_heads(model, with_heads, expected, tmp_path):  # noqa: F811
    with speculating(model, RPC, with_heads, 3, page_size=16, **AHEAD) as running:
        results = run(running)
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert outputs(results) == outputs(expected)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"page_size": 16, **AHEAD}, id="overlap"),
        pytest.param({"tp_size": 2}, id="tp 2", marks=pytest.mark.long),
    ],
)
def test_latents_draft_for_a_model_with_heads(model, with_heads, tmp_path, more):  # noqa: F811
    # On as many ranks: of one KV head SGLang makes two on a CPU, and the empty one has scores too.
    with engine(with_heads, RPC, disable_overlap_schedule=True, tp_size=more.get("tp_size", 1)) as running:
        alone = run(running)
    with speculating(with_heads, RPC, model, 3, **more) as running:
        results = run(running)
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert outputs(results) == outputs(alone)
    assert results[0]["meta_info"]["rpc"]["compressions"] > 2


@pytest.mark.long
def test_without_the_cut_it_differs(model, expected, monkeypatch):  # noqa: F811
    kind = engines._spied()
    monkeypatch.setattr(kind, "run_scheduler_process_func", staticmethod(speculative.without_the_cut))
    monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "0")
    with engine(model, RPC, **drafting(model, 4)) as running:
        results = run(running)
    date = RPC.interval + RPC.window
    assert results[0]["output_ids"][: date + 1] == expected[0]["output_ids"][: date + 1]
    assert results[0]["output_ids"] != expected[0]["output_ids"]


@pytest.mark.long
def test_without_the_drafts_move_only_acceptance_falls(model, expected, monkeypatch):  # noqa: F811
    """From 1.88 tokens per step after a compression to 1.33."""
    kind, means = engines._spied(), []
    for function in (kind.run_scheduler_process_func, speculative.without_the_drafts_move):
        monkeypatch.setattr(kind, "run_scheduler_process_func", staticmethod(function))
        with engine(model, RPC, **drafting(model, 4)) as running:
            results = run(running)
        assert outputs(results) == outputs(expected)
        receipts = [r["meta_info"]["rpc"] for r in results if r["meta_info"]["rpc"]["compressions"]]
        means.append(sum(receipt["tokens_per_step_compressed"] for receipt in receipts) / len(receipts))
        assert min(receipt["tokens_per_step"] for receipt in receipts) > 1.5  # or this says nothing
    moving, leaving = means
    print(f"tokens per step after a compression: {moving:.2f}, and {leaving:.2f} without the move")
    assert moving > 1.2 * leaving
