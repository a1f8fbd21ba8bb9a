"""Speculative decoding of models with sliding windows: every token and log probability is as without drafts.

The draft is the model itself, but for its windows: all layers of a draft have full attention. What window layers add is
made small, so that the draft is right now and then.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sglang_rpc import RPCConfig
from tests.engine import speculative
from tests.engine.engines import assert_balanced, engine, greedy, look_inside
from tests.engine.speculative import AHEAD, branching, speculating
from tests.engine.test_speculative import assert_same
from tests.engine.test_windows import drawn
from tests.engine.windows import FAMILIES, write_model

RPC = RPCConfig(interval=40, window=8, ratio=2, scope="all", host_backup_gb=0.5)
#: The family, rows that a request verifies, and what else differs.
SHAPES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "chain of 4, overlap, page 16": ("olmo3", 4, {"page_size": 16, **AHEAD}),
    "chain of 2": ("olmo3", 2, {}),
    "chain of 5, chunked": ("olmo3", 5, {"chunked_prefill_size": 16}),
    "chain of 3, tp 2": ("olmo3", 3, {"tp_size": 2}),
    "branches": ("olmo3", 6, branching(3, 2)),
    "earlier text": ("olmo3", 6, {"speculative_algorithm": "NGRAM"}),
    "EAGLE3": ("gemma3", 4, {"speculative_algorithm": "EAGLE3"}),
    "earlier text, gemma3, overlap": ("gemma3", 4, {"speculative_algorithm": "NGRAM", **AHEAD}),
}
SHARE = 0.1
BY_DEFAULT = ("chain of 4, overlap, page 16",)


def requests(reach: int) -> list[tuple[list[int], dict[str, Any]]]:
    rng = random.Random(5)
    shared = [rng.randrange(20, 500) for _ in range(40)]
    prompts = [[*shared[: rng.choice([17, 40])], *(rng.randrange(20, 500) for _ in range(i))] for i in range(1, 9)]
    options = [{"enabled": False} if i == 3 else drawn(rng, reach) for i in range(len(prompts))]
    return [(prompt, greedy(rng.randint(90, 190), rpc)) for prompt, rpc in zip(prompts, options, strict=True)]


def run(running: Any, reach: int) -> list[dict[str, Any]]:
    prompts, params = zip(*requests(reach), strict=True)
    return running.generate(
        input_ids=list(prompts), sampling_params=list(params), return_logprob=True, logprob_start_len=-1
    )


def weaken(model: Path) -> None:
    """An OLMo 3 whose window layers add little: their outputs pass a norm, whose weights are made small."""
    file, kinds = model / "model.safetensors", json.loads((model / "config.json").read_text())["layer_types"]
    weights = load_file(file)
    for layer, kind in enumerate(kinds):
        if kind == "sliding_attention":
            weights[f"model.layers.{layer}.post_attention_layernorm.weight"] *= SHARE
    save_file(weights, file, {"format": "pt"})


def without_windows(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@dataclass(frozen=True)
class Known:
    """A model, and what it says without drafts."""

    model: Path
    reach: int
    expected: list[dict[str, Any]]


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Callable[[str], Known]:
    @functools.cache
    def of(family: str) -> Known:
        model, reach = write_model(tmp_path_factory.mktemp(family), FAMILIES[family]), FAMILIES[family].reach
        if family == "olmo3":
            weaken(model)
        with engine(model, RPC, disable_overlap_schedule=True) as running:
            return Known(model, reach, run(running, reach))

    return of


@pytest.mark.parametrize("shape", [s if s in BY_DEFAULT else pytest.param(s, marks=pytest.mark.long) for s in SHAPES])
@pytest.mark.parametrize("retracting", [pytest.param(False, marks=pytest.mark.long), True], ids=["", "retracting"])
def test_as_without_drafts(known, tmp_path, monkeypatch, shape, retracting):
    family, tokens, more = SHAPES[shape]
    made = known(family)
    if retracting:
        monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
        monkeypatch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
    drafts = {
        "NGRAM": lambda: None,
        "EAGLE3": lambda: speculative.eagle3_of(made.model, tmp_path / "draft"),
        "STANDALONE": lambda: without_windows(made.model, tmp_path / "draft"),
    }
    algorithm = more.get("speculative_algorithm", "STANDALONE")
    with speculating(made.model, RPC, drafts[algorithm](), tokens, **more) as running:
        results = run(running, made.reach)
        again = run(running, made.reach)
        seen = look_inside(running, tmp_path, [1])
    for each in (results, again):
        assert_same(each, made.expected)
    receipts = [result["meta_info"]["rpc"] for result in again]
    taken = [receipt["tokens_per_step_compressed"] for receipt in receipts if receipt["compressions"]]
    if algorithm != "EAGLE3":  # whose weights are random
        assert min(taken) > 1.15
        assert algorithm == "NGRAM" or sum(taken) / len(taken) < 0.9 * tokens
    assert sum(receipt["compressions"] for receipt in receipts) > 15
    assert (sum(receipt["restored"] for receipt in receipts) > 3) == retracting
    assert_balanced(seen)
