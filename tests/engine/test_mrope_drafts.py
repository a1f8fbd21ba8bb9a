"""Speculative decoding of a model whose rope has three axes, with images: every token and log probability is as without
drafts."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_rpc import RPCConfig
from tests.engine import speculative
from tests.engine.engines import assert_balanced, engine, flush, greedy, look_inside
from tests.engine.speculative import AHEAD, speculating
from tests.engine.test_mrope import requests
from tests.engine.test_speculative import assert_same
from tests.engine.visual import write_model

RPC = RPCConfig(interval=32, window=8, ratio=4, scope="all", host_backup_gb=0.5)
#: Rows that a request verifies, and what else differs.
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "earlier text": (6, {}),
    "earlier text, overlap": (4, AHEAD),
    "EAGLE3": (4, {"speculative_algorithm": "EAGLE3"}),
    "EAGLE3, overlap, page 16, chunked": (
        3,
        {"speculative_algorithm": "EAGLE3", "page_size": 16, "chunked_prefill_size": 32, **AHEAD},
    ),
}

BY_DEFAULT = ("earlier text, overlap",)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("visual"))


@pytest.fixture(scope="module")
def draft(model, tmp_path_factory):
    return speculative.eagle3_of(model, tmp_path_factory.mktemp("draft") / "model")


def run(running: Any) -> list[dict[str, Any]]:
    prompts, images, options, lengths = zip(*requests(), strict=True)
    return running.generate(
        input_ids=list(prompts),
        image_data=[[image] if image else [] for image in images],
        sampling_params=[greedy(n, rpc=rpc) for n, rpc in zip(lengths, options, strict=True)],
        return_logprob=True,
        logprob_start_len=-1,
    )


@pytest.fixture(scope="module")
def expected(model) -> list[dict[str, Any]]:
    with engine(model, RPC, disable_overlap_schedule=True) as running:
        return run(running)


@pytest.mark.parametrize("shape", [s if s in BY_DEFAULT else pytest.param(s, marks=pytest.mark.long) for s in SHAPES])
@pytest.mark.parametrize("retracting", [pytest.param(False, marks=pytest.mark.long), True], ids=["", "retracting"])
def test_as_without_drafts(model, draft, expected, tmp_path, monkeypatch, shape, retracting):
    tokens, more = SHAPES[shape]
    if retracting:
        monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
        monkeypatch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
    with speculating(model, RPC, draft if "EAGLE3" in shape else None, tokens, **more) as running:
        results = run(running)
        again = run(running)
        seen = look_inside(running, tmp_path, [1])
        flush(running)
    assert_same(results, expected)
    assert_same(again, expected)
    receipts = [result["meta_info"]["rpc"] for result in results + again]
    assert sum(receipt["compressions"] for receipt in receipts) > 40
    assert all(receipt["late"] == 0 for receipt in receipts)
    assert (sum(receipt["restored"] for receipt in receipts) > 10) == retracting
    if "earlier" in shape:
        often = [result["meta_info"]["rpc"] for result in again if result["meta_info"]["rpc"]["compressions"]]
        assert all(receipt["tokens_per_step_compressed"] > 1.5 for receipt in often)
    assert_balanced(seen)
