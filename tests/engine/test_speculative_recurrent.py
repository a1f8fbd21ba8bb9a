"""Speculative decoding of models with recurrent layers: every token and log probability is as without drafts, for a
step that ends at a due date leaves the state of its last token there."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sglang_rpc import RPCConfig
from tests.engine import recurrent_drafts
from tests.engine.engines import assert_balanced, engine, flush, greedy, look_inside
from tests.engine.recurrent import FAMILIES, ON_A_CPU
from tests.engine.recurrent_drafts import AHEAD_WITHOUT_A_TREE, verifying
from tests.engine.speculative import branching
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


CHAIN, AHEAD, EARLIER = "chain of 4", "chain of 4, overlap, no tree", "6 of earlier text"
#: Rows that a request verifies, whether a model drafts them, and what else differs.
SHAPES: dict[str, tuple[int, bool, dict[str, Any]]] = {
    CHAIN: (4, True, {}),
    "chain of 2": (2, True, {}),
    "chain of 3, chunked": (3, True, {"chunked_prefill_size": 16}),
    "chain of 5, no tree": (5, True, {"disable_radix_cache": True}),
    AHEAD: (4, True, AHEAD_WITHOUT_A_TREE),
    "chain of 4, tp 2": (4, True, {"tp_size": 2}),
    "branches": (8, True, branching(3, 2)),
    EARLIER: (6, False, {}),
    "12 of earlier text": (12, False, {"speculative_ngram_match_type": "PROB"}),
    "3 of earlier text": (3, False, {}),
}
BY_DEFAULT = (("qwen3_5_text", AHEAD),)
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
    with verifying(made.model, RPC, made.draft if drafts else None, tokens, **more) as running:
        yield running, made, shape


def test_together_as_without_drafts(case, tmp_path):
    running, made, shape = case
    results = run(running)
    assert_same(results, made.expected)
    assert sum(receipt["compressions"] for receipt in compressed(results)) > 25
    if SHAPES[shape][1]:
        assert_some_taken(results, SHAPES[shape][0])
    assert_balanced(look_inside(running, tmp_path, [1]))


def assert_some_taken(results: list[dict[str, Any]], tokens: int) -> None:
    """Of each request's drafts some, and not all: though of a text that goes in circles almost all may be."""
    receipts = compressed(results)
    assert sum(receipt["cuts"] for receipt in receipts) > 5, receipts
    taken = [receipt["tokens_per_step_compressed"] for receipt in receipts]
    assert min(taken) > 1.15
    assert sum(taken) / len(taken) < 0.9 * tokens, taken


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
