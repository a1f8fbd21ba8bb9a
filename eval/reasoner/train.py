"""Train the reasoner: `python -m eval.reasoner.train --out DIR --minutes 60 --seed 0`.

A Qwen2 of half a million parameters, from nothing, on one CPU core or a GPU. What makes it learn in an hour: layer 0
begins with heads that look one, two and three tokens back (through Qwen2's query and key biases); short problems come
before long ones; matrices are updated by Muon, the rest by AdamW.

Writes what SGLang and transformers load, and `training.json`: arguments, versions, what was reached. The schedule goes
by the clock, so the same seed gives the same kind of model, not the same numbers. Weights so far: `OUT.partial`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM

from eval.reasoner import task
from eval.reasoner.export import save
from eval.reasoner.muon import Muon

ROTATIONS = 10  #: frequencies of a head that look-back heads use; the fastest ones tell neighbours apart
SHARPNESS = 7.0


@dataclass(frozen=True)
class Size:
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    wide: int = 384


def build(size: Size) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(task.VOCABULARY),
        hidden_size=size.hidden,
        intermediate_size=size.wide,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": 100_000.0, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=task.BOS,
        eos_token_id=task.EOS,
        pad_token_id=task.PAD,
        use_sliding_window=False,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name:
                weight.normal_(std=0.5)
            elif weight.ndim == 2:
                out = "o_proj" in name or "down_proj" in name
                weight.normal_(std=(0.4 if out else 1.0) * weight.shape[1] ** -0.5)
            elif name.endswith("bias"):
                weight.zero_()
        model.model.norm.weight.fill_(0.2)
        alike(model.model.embed_tokens.weight)
        look_back(model.model.layers[0].self_attn, config)
    return model


def alike(embedding: torch.Tensor) -> None:
    """Make words of one meaning begin alike: a key and the question for it, a number and an increment of it.

    Looking one key up, and adding one pair of numbers, then teaches more than itself.
    """
    keys, numbers = len(task.LETTERS) * max(task.FACTS), task.MOD
    for first, second, count in ((task.KEY, task.ASK, keys), (task.NUMBER, task.INCREMENT, numbers)):
        shared = embedding[first : first + count] + embedding[second : second + count]
        for start in (first, second):
            own = torch.randn(1, embedding.shape[1]) * 0.3  # that it is a key, or a question
            embedding[start : start + count] = 0.2 * embedding[start : start + count] + 0.6 * shared + own


def look_back(attention: torch.nn.Module, config: Qwen2Config) -> None:
    """Make the first heads attend 1, 2, 3 tokens back, whatever the tokens.

    With a constant key u, rotated by its position j, and a constant query u rotated back by d and then by its position
    i, the logit is u . R(j - i + d) u, largest at j = i - d.
    """
    dim = config.hidden_size // config.num_attention_heads
    half, used = dim // 2, min(ROTATIONS, dim // 2)
    angles = 100_000.0 ** (-torch.arange(0, dim, 2).float() / dim)[:used]
    group = config.num_attention_heads // config.num_key_value_heads
    for head, back in zip(range(config.num_attention_heads), (1, 2, 3), strict=False):
        query, key = head * dim, head // group * dim
        attention.q_proj.weight[query : query + dim] *= 0.1
        attention.k_proj.weight[key : key + dim] *= 0.1
        attention.k_proj.bias[key : key + used] = SHARPNESS
        attention.q_proj.bias[query : query + used] = SHARPNESS * (back * angles).cos()
        attention.q_proj.bias[query + half : query + half + used] = -SHARPNESS * (back * angles).sin()


@dataclass(frozen=True)
class Stage:
    """Levels drawn from, and the accuracy of numbers that ends it."""

    facts: tuple[int, ...]
    lines: tuple[int, ...]
    phases: tuple[int, ...]
    until: float
    weights: tuple[float, ...] | None = None  #: of `lines`


STAGES = (
    Stage((4,), (8,), (1, 2, 3), 0.9),
    Stage((4, 8, 16), (8, 16), (1, 2, 3), 0.97),
    Stage((4, 8, 16), (16, 32), (2, 3), 0.985),
    Stage((4, 8, 16), (8, 32, 56), (3,), 2.0, (0.1, 0.3, 0.6)),
)


class Sampler:
    def __init__(self, seed: int, tokens: int):
        self.generator = np.random.default_rng(seed)
        self.tokens = tokens

    def batch(self, stage: Stage) -> tuple[torch.Tensor, task.Level]:
        """Problems of one level: [B, tokens]."""
        g = self.generator
        level = task.Level(
            facts=int(g.choice(stage.facts)),
            lines=int(g.choice(stage.lines, p=stage.weights)),
            phases=int(g.choice(stage.phases)),
            late=bool(g.random() < 0.3),
        )
        length = level.prompt_tokens + level.thought_tokens + task.ASKED + 2
        rows = task.draw(level, max(2, round(self.tokens / length)), g)
        return torch.from_numpy(rows), level


def loss_of(model: torch.nn.Module, rows: torch.Tensor, prompt: int) -> tuple[torch.Tensor, ...]:
    """Cross entropy over thoughts and answer, numbers counted thrice; and the share of right numbers, by kind."""
    logits = model(input_ids=rows[:, :-1]).logits[:, prompt - 1 :].float()
    target = rows[:, prompt:]
    number = (target >= task.NUMBER) & (target < task.NUMBER + task.MOD)
    weight = torch.where(number, 3.0, 1.0)
    each = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    right = logits.argmax(-1) == target
    behind = (target == task.END_THINK).cumsum(1) > 0
    before = rows[:, prompt - 1 : -1]
    entry = (before >= task.KEY) & (before < task.ASK)
    kinds = (number & entry, number & ~entry & ~behind, number & behind)  # of the ledgers, the lines and the answer
    return (each * weight).sum() / weight.sum(), torch.stack([right[kind].float().mean() for kind in kinds])


@torch.no_grad()
def exact(model: torch.nn.Module, level: task.Level, count: int, seed: int, device: str) -> float:
    """Share of problems solved token for token by greedy decoding: given the right tokens so far, every next one is."""
    solved = 0
    for first in range(0, count, 16):
        rows = torch.from_numpy(task.draw(level, min(16, count - first), np.random.default_rng([seed, first]))).to(
            device
        )
        guess = model(input_ids=rows[:, :-1]).logits[:, level.prompt_tokens - 1 :].argmax(-1)
        solved += int((guess == rows[:, level.prompt_tokens :]).all(1).sum())
    return solved / count


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    device = options.device
    model = build(Size()).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(matrices, lr=0.02),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    rates = [0.02, 3e-3]
    sampler, stage, accuracy = Sampler(options.seed, options.tokens), 0, torch.zeros(3)
    began, step, tokens, reported = time.monotonic(), 0, 0, 0.0
    while (elapsed := time.monotonic() - began) < options.minutes * 60:
        done = elapsed / (options.minutes * 60)
        factor = min(1.0, 0.05 + done * 50) * (1.0 if done < 0.4 else max(0.01, (1 - done) / 0.6))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        rows, level = sampler.batch(STAGES[stage])
        # bfloat16 where the hardware has it: on a CPU without, it is ten times slower than float32.
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss, right = loss_of(model, rows.to(device), level.prompt_tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, tokens = step + 1, tokens + rows.numel()
        accuracy = accuracy.lerp(right.cpu(), 0.02)
        if accuracy.min() > STAGES[stage].until:
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
    reached = {name: exact(model, level, options.problems, 10**6, device) for name, level in task.LADDER.items()}
    say(exact=reached)
    save(model.float().cpu(), options, {"steps": step, "tokens": tokens, "exact": reached})


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.reasoner.train", description=__doc__.partition("\n")[0])
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
