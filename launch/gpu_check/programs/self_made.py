"""Recordings where the authors' are missing: random models, run by the oracle of tests/engine with RPC and without.

They have the names, shapes and settings of the authors' recordings, so every test that reads those can read these.
The oracle shares no code with the package. On the authors' recordings it equals their code
(tests/engine/test_oracle.py).
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from launch.gpu_check.programs import say
from tests.engine import dense
from tests.engine.dense import Dims
from tests.engine.oracle import Oracle, Rule

PROMPT_TOKENS = 23
SMALL = Dims(hidden=64, wide=128)
#: Smallest distances along the run: between the best two logits, and relative between the scores at a selection's cut.
#: A kernel's rounding must not decide, so seeds are tried until a run keeps them.
LEAST_GAP, LEAST_SCORE_GAP, MOST_SEEDS = 1.5e-3, 1e-5, 60


@dataclass(frozen=True)
class Recipe:
    dims: Dims
    rule: Rule
    tokens: int


RECIPES = {
    "gqa_all_p64": Recipe(SMALL, Rule(64, 8, 4), 400),
    "mha_all_p128": Recipe(Dims(hidden=64, wide=128, kv_heads=4, layers=2), Rule(128, 32, 4), 450),
    "gqa_group_p64": Recipe(SMALL, Rule(64, 8, 4, group=True), 400),
    "gqa_max_p48": Recipe(SMALL, Rule(48, 16, 4, pooling="max"), 300),
    "gqa8x_p64": Recipe(Dims(hidden=128, wide=256, heads=8, layers=2), Rule(64, 8, 8), 400),
}


@dataclass(frozen=True)
class Recorded:
    output: list[int]
    compressions: int
    gap: float  #: smallest between the best two logits
    score_gap: float  #: smallest relative one at a selection's cut


def write(folder: Path, name: str) -> Recorded:
    """Write `folder`/`name` as the authors' recordings have it. Raises RuntimeError if no seed will do."""
    recipe = RECIPES[name]
    for seed in range(MOST_SEEDS):
        prompt = [random.Random(seed).randrange(20, recipe.dims.vocabulary) for _ in range(PROMPT_TOKENS)]
        path = dense.write_model(folder / name, seed, recipe.dims)
        oracle = Oracle(path)
        found = record(oracle, prompt, recipe.tokens, recipe.rule)
        # Pooling by the maximum makes neighbours equal, whatever the model.
        if found.gap >= LEAST_GAP and (found.score_gap >= LEAST_SCORE_GAP or recipe.rule.pooling == "max"):
            _save(path, prompt, found, recipe, oracle.layers, record(oracle, prompt, recipe.tokens, None).output)
            return found
    raise RuntimeError(f"{name}: each of {MOST_SEEDS} random models has near ties")


@torch.inference_mode()
def record(oracle: Oracle, prompt: list[int], tokens: int, rule: Rule | None) -> Recorded:
    """A greedy run of `tokens` tokens, compressed as `rule` says."""
    empty = torch.empty(0, oracle.kv_heads, oracle.dim)
    cache = [(empty, empty)] * oracle.layers
    logits, _ = oracle._forward(torch.tensor(prompt), torch.arange(len(prompt)), cache)
    recent = [torch.empty(0, oracle.heads, oracle.dim)] * oracle.layers
    output: list[int] = []
    compressions, gap, score_gap = 0, float("inf"), float("inf")
    while len(output) < tokens:
        best = logits[-1].topk(2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        output.append(int(best.indices[0]))
        at = torch.tensor([len(prompt) + len(output) - 1])
        logits, queries = oracle._forward(torch.tensor(output[-1:]), at, cache)
        recent = [torch.cat(pair)[-64:] for pair in zip(recent, queries, strict=True)]
        # The last token is answered, not run: nothing is compressed after it.
        if rule is not None and len(output) < tokens and oracle._is_due(len(output), rule):
            compressions += 1
            keep = compressions * int(rule.interval / rule.ratio)
            score_gap = min(score_gap, oracle._compress(rule, len(prompt), keep, cache, recent))
    return Recorded(output, compressions, gap, score_gap)


def _save(path: Path, prompt: list[int], found: Recorded, recipe: Recipe, layers: int, full: list[int]) -> None:
    rule = recipe.rule
    run = {
        "P": rule.interval,
        "R": rule.window,
        "c": rule.ratio,
        "aggregation": "group" if rule.group else "all",
        "pooling": rule.pooling + "pool",
        "kernel_size": rule.kernel_size,
        "recorded_by": "the oracle of tests/engine",
        "prompt": prompt,
        "output": found.output,
        "compressions": [None] * found.compressions * layers,  # one per layer and compression
    }
    (path / "golden.json").write_text(json.dumps(run))
    (path / "golden_full.json").write_text(json.dumps({"prompt": prompt, "output": full}))


def main(folder: Path) -> None:
    for name in RECIPES:
        found = write(folder, name)
        say(f"{name}: {len(found.output)} tokens, {found.compressions} compressions, smallest gap {found.gap:.2g}")
    # The folder that tests/conftest.py knows recordings by; single compressions are for tests of the CPU.
    (folder / "compress_kv").mkdir(exist_ok=True)
    say(f"{len(RECIPES)} recordings, made by the oracle")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
