"""Train a reasoner: `python -m eval.reasoner.train --task program --out DIR --minutes 60 --seed 0`.

A Qwen2 of half a million parameters or more, from nothing, on one CPU core or a GPU. What makes it learn in an hour:
layer 0 begins with heads that look a few tokens back (through Qwen2's query and key biases); short
problems come before long ones; matrices are updated by Muon, the rest by AdamW. With `--window` it is a Gemma 2, every
other layer of which sees a window. With `--layers` or `--hidden` it is smaller, to draft for one that is not.

Writes what SGLang and transformers load, and `training.json`: arguments, versions, what was reached. The schedule goes
by the clock, so the same seed gives the same kind of model, not the same numbers. Weights so far: `OUT.partial`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from eval.reasoner.export import save
from eval.reasoner.lessons import LESSONS, Lesson
from eval.reasoner.muon import Muon
from eval.reasoner.network import build
from eval.reasoner.words import Family, Level

RATES = {"matrices": 0.02, "others": 3e-3}


def batch(lesson: Lesson, stage: int, tokens: int, generator: np.random.Generator) -> tuple[torch.Tensor, Level]:
    """Problems of one level, about `tokens` in all: [B, tokens]."""
    level = lesson.level(stage, generator)
    length = level.prompt_tokens + level.thought_tokens + 5  # </think>, three words, <eos>
    return torch.from_numpy(lesson.family.draw(level, max(2, round(tokens / length)), generator)), level


def loss_of(model: torch.nn.Module, lesson: Lesson, rows: torch.Tensor, level: Level) -> tuple[torch.Tensor, ...]:
    """Cross entropy over thoughts and answer, what must be derived counted thrice; share of right tokens, by kind."""
    logits = model(input_ids=rows[:, :-1]).logits[:, level.prompt_tokens - 1 :].float()
    target = rows[:, level.prompt_tokens :]
    kinds = lesson.kinds(rows, level)
    weight = torch.where(torch.stack(kinds).any(0), 3.0, 1.0)
    each = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    right = logits.argmax(-1) == target
    return (each * weight).sum() / weight.sum(), torch.stack([right[kind].float().mean() for kind in kinds])


@torch.no_grad()
def exact(model: torch.nn.Module, family: Family, level: Level, count: int, seed: int, device: str) -> float:
    """Share of problems solved token for token by greedy decoding: given the right tokens so far, every next one is."""
    solved = 0
    for first in range(0, count, 16):
        drawn = family.draw(level, min(16, count - first), np.random.default_rng([seed, first]))
        rows = torch.from_numpy(drawn).to(device)
        guess = model(input_ids=rows[:, :-1]).logits[:, level.prompt_tokens - 1 :].argmax(-1)
        solved += int((guess == rows[:, level.prompt_tokens :]).all(1).sum())
    return solved / count


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    device = options.device
    lesson = LESSONS[options.task]
    given = {name: getattr(options, name) for name in ("layers", "hidden") if getattr(options, name) is not None}
    if "hidden" in given:
        given["wide"] = given["hidden"] * lesson.size.wide // lesson.size.hidden
    model = build(replace(lesson.size, **given), len(lesson.family.WORDS), lesson.meanings, options.window).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=RATES["matrices"]),
        torch.optim.AdamW(others, lr=RATES["others"], betas=(0.9, 0.98), weight_decay=0.0),
    ]
    generator, stage, accuracy = np.random.default_rng(options.seed), 0, torch.zeros(())
    began, step, tokens, reported = time.monotonic(), 0, 0, 0.0
    while (elapsed := time.monotonic() - began) < options.minutes * 60:
        done = elapsed / (options.minutes * 60)
        factor = min(1.0, 0.05 + done * 50) * min(1.0, max(0.01, (1 - done) / (1 - lesson.steady)))
        for optimizer, rate in zip(optimizers, RATES.values(), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        rows, level = batch(lesson, stage, options.tokens, generator)
        # bfloat16 where the hardware has it: on a CPU without, it is ten times slower than float32.
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss, right = loss_of(model, lesson, rows.to(device), level)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + rows.numel()
        accuracy = accuracy + 0.02 * torch.nan_to_num(right.cpu() - accuracy)  # not a number: none of the kind
        if accuracy.min() > lesson.enough[stage]:
            stage, accuracy = stage + 1, accuracy * 0.5
        if elapsed - reported > options.report:
            reported = elapsed
            torch.save(model.state_dict(), options.out.with_suffix(".partial"))
            say(
                step=step,
                seconds=round(elapsed),
                tokens=tokens,
                stage=stage,
                loss=round(loss.item(), 4),
                right=[round(share, 4) for share in accuracy.tolist()],
            )
    model.eval()
    family = lesson.family
    reached = {n: exact(model, family, level, options.problems, 10**6, device) for n, level in family.LADDER.items()}
    say(exact=reached)
    save(model.float().cpu(), family.WORDS, options, {"steps": step, "tokens": tokens, "exact": reached})


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.reasoner.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--task", choices=LESSONS, default="ledger", help="what it learns")
    parser.add_argument("--window", type=int, help="tokens that layers 0, 2, 4 ... see; without it all see everything")
    parser.add_argument("--layers", type=int, help="of the network; without it as many as the task asks for")
    parser.add_argument("--hidden", type=int, help="its width; without it what the task asks for")
    parser.add_argument("--out", type=Path, required=True, help="directory for the model")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; two were slower than one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=3000, help="a step")
    parser.add_argument("--problems", type=int, default=200, help="that each level is judged by at the end")
    parser.add_argument("--report", type=float, default=30, help="seconds between two lines of progress")
    train(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
