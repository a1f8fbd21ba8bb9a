"""Speculative decoding of models with recurrent layers: every token and log probability is as without drafts, for a
step that ends at a due date leaves the state of its last token there."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sglang_rpc import RPCConfig
from tests.engine import engines, recurrent_drafts, speculative
from tests.engine.engines import assert_balanced, engine, flush, greedy, look_inside
from tests.engine.recurrent import FAMILIES, ON_A_CPU
from tests.engine.speculative import branching, speculating
from tests.engine.test_speculative import assert_same

RPC = RPCConfig(interval=41, window=8, ratio=2, scope="all", host_backup_gb=0.5)


def requests() -> list[tuple[list[int], dict[str, Any]]]:
    """Prompts of a common beginning; dates that fall anywhere in a step, short intervals, no compression."""
    rng = random.Random(7)
    shared = [rng.randrange(20, 500) for _ in range(40)]
    prompts = [[*shared[: 8 * i], *(rng.randrange(20, 500) for _ in range(5 + i))] for i in range(6)]
    options = [None, {"interval": 9, "window": 4, "ratio": 3}, {"enabled": False}, {"interval": 17, "window": 2}]
    options += [{"interval": 5, "window": 8, "ratio": 1.5}, {"interval": 37, "window": 3, "ratio": 8}]
    return [
        (prompt, greedy(tokens, rpc))
        for prompt, rpc, tokens in zip(prompts, options, (200, 130, 90, 150, 70, 120), strict=True)
    ]


def run(running: Any) -> list[dict[str, Any]]:
    prompts, params = zip(*requests(), strict=True)
    return running.generate(
        input_ids=list(prompts), sampling_params=list(params), return_logprob=True, logprob_start_len=-1
    )


def compressed(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    receipts = [result["meta_info"].get("rpc") for result in results]
    return [receipt for receipt in receipts if receipt and receipt["compressions"]]


CHAIN, EARLIER = "chain of 4", "6 of earlier text"
#: Rows that a request verifies, whether a model drafts them, and what else differs.
SHAPES: dict[str, tuple[int, bool, dict[str, Any]]] = {
    CHAIN: (4, True, {}),
    "chain of 2": (2, True, {}),
    "chain of 3, chunked": (3, True, {"chunked_prefill_size": 16}),
    "chain of 5, no tree": (5, True, {"disable_radix_cache": True}),
    "chain of 4, tp 2": (4, True, {"tp_size": 2}),
    "branches": (8, True, branching(3, 2)),
    EARLIER: (6, False, {}),
    "12 of earlier text": (12, False, {"speculative_ngram_match_type": "PROB"}),
    "3 of earlier text, in a chain": (3, False, {"speculative_ngram_max_bfs_breadth": 1}),
}
BY_DEFAULT = (("qwen3_next", CHAIN), ("qwen3_next", EARLIER), ("qwen3_5_text", CHAIN))
RUNS = [
    pytest.param(
        (family, shape), id=f"{family}, {shape}", marks=() if (family, shape) in BY_DEFAULT else pytest.mark.long
    )
    for family in FAMILIES
    for shape in SHAPES
]


@dataclass(frozen=True)
class Known:
    """A model, a draft for it, and what it says without drafts."""

    model: Path
    draft: Path
    expected: list[dict[str, Any]]


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Callable[[str], Known]:
    @functools.cache
    def of(family: str) -> Known:
        folder = tmp_path_factory.mktemp(family)
        model = recurrent_drafts.write_model(folder / "model", family)
        with engine(model, RPC, **ON_A_CPU) as running:
            expected = run(running)
        return Known(model, recurrent_drafts.dense_draft(model, folder / "draft"), expected)

    return of


@pytest.fixture(scope="module", params=RUNS)
def case(request, known) -> Iterator[tuple[Any, Known, str]]:
    family, shape = request.param
    made, (tokens, drafts, more) = known(family), SHAPES[shape]
    with speculating(made.model, RPC, made.draft if drafts else None, tokens, **more) as running:
        yield running, made, shape


def test_together_as_without_drafts(case, tmp_path):
    running, made, shape = case
    results = run(running)
    assert_same(results, made.expected)
    assert sum(receipt["compressions"] for receipt in compressed(results)) > 25
    if SHAPES[shape][1]:
        _took_drafts_and_rejected_some(results, SHAPES[shape][0])
    assert_balanced(look_inside(running, tmp_path, [1]))


def _took_drafts_and_rejected_some(results: list[dict[str, Any]], tokens: int) -> None:
    receipts = compressed(results)
    assert sum(receipt["cuts"] for receipt in receipts) > 5, receipts
    for receipt in receipts:
        assert 1.15 < receipt["tokens_per_step_compressed"] < 0.9 * tokens, receipt


def test_once_more_beside_what_the_tree_has(case, tmp_path):
    """States of prompts, and of what was said without RPC, are those of their tokens. Earlier text is drafted again."""
    running, made, shape = case
    run(running)
    results = run(running)
    assert_same(results, made.expected)
    if not SHAPES[shape][1]:
        assert all(receipt["tokens_per_step_compressed"] > 1.5 for receipt in compressed(results))
        assert sum(receipt["cuts"] for receipt in compressed(results)) > 5
    prompts = [
        [*prompt, *result["output_ids"], 77, 78] for (prompt, _), result in zip(requests(), results, strict=True)
    ]
    params = greedy(12, {"enabled": False})
    again = [running.generate(input_ids=prompt, sampling_params=params) for prompt in prompts]
    flush(running)
    anew = [running.generate(input_ids=prompt, sampling_params=params) for prompt in prompts]
    assert [result["output_ids"] for result in again] == [result["output_ids"] for result in anew]
    assert_balanced(look_inside(running, tmp_path, [1]))


@pytest.mark.parametrize(
    ("tokens", "drafts"), [(4, True), pytest.param(6, False, marks=pytest.mark.long)], ids=["chain", "earlier text"]
)
@pytest.mark.parametrize("backed_up", [True, pytest.param(False, marks=pytest.mark.long)], ids=["", "computed anew"])
def test_retracted_over_and_over(known, tmp_path, tokens, drafts, backed_up):
    """Each comes back with the state of its newest token; without a backup, prefilled again, and compressed late."""
    made = known("qwen3_next")
    rpc = RPC if backed_up else replace(RPC, host_backup_gb=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_TEST_RETRACT", "1")
        patch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
        with speculating(made.model, rpc, made.draft if drafts else None, tokens) as running:
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


@pytest.mark.parametrize("family", ["qwen3_next", pytest.param("qwen3_5_text", marks=pytest.mark.long)])
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
    _took_drafts_and_rejected_some(results, 4)
    assert_balanced(seen)


@pytest.mark.parametrize(
    "without", [speculative.without_the_cut, recurrent_drafts.with_states_past_the_cut], ids=["the cut", "its state"]
)
def test_without_a_part_it_differs(known, monkeypatch, without):
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
