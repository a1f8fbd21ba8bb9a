"""A plain decode loop of a small Qwen2 with RPC, sharing no code with the package: the judge of what a server gave.

It is shown the tokens a server returned and says, for each, how far its logit lies below the largest one given
everything before it (0 for the greedy choice). So a near-tie in a random model is not mistaken for a wrong token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file


@dataclass(frozen=True)
class Rule:
    """P, R, c and the variant; `first`: generated entries before the compressible region; `until`: see `gaps`."""

    interval: int
    window: int
    ratio: float
    kernel_size: int = 7
    pooling: str = "avg"
    group: bool = False
    selector: str = "official"
    first: int = 0
    until: int = 10**9


class Oracle:
    #: Tokens of one forward at most. Between two compressions nothing is forgotten, so they are as good as one by one.
    at_once = 10**9

    def __init__(self, path: Path):
        config = json.loads((path / "config.json").read_text())
        self.w = {name: weight.float() for name, weight in load_file(path / "model.safetensors").items()}
        self.layers = config["num_hidden_layers"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.dim = self.value_dim = config["hidden_size"] // self.heads
        self.eps = config["rms_norm_eps"]
        frequency = config["rope_theta"] ** (-torch.arange(0, self.dim, 2).float() / self.dim)
        angles = torch.outer(torch.arange(config["max_position_embeddings"]).float(), frequency)
        self.cos, self.sin = torch.cat([angles, angles], 1).cos(), torch.cat([angles, angles], 1).sin()

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.w[name]

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        half = self.dim // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self.cos[positions][:, None] + turned * self.sin[positions][:, None]

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def _attend(self, h: torch.Tensor, positions: torch.Tensor, p: str) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values of the new tokens: [tokens, heads, dim] each."""
        q = self._linear(h, p + "q_proj").view(len(h), self.heads, self.dim)
        k = self._linear(h, p + "k_proj").view(len(h), self.kv_heads, self.dim)
        v = self._linear(h, p + "v_proj").view(len(h), self.kv_heads, self.dim)
        return self._rotate(q, positions), self._rotate(k, positions), v

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, cache: list) -> tuple[torch.Tensor, list]:
        """Logits of each token; appends to `cache` ([heads] of K, V per layer); returns each layer's queries."""
        x = self.w["model.embed_tokens.weight"][ids]
        queries, self.attended = [], []  # of the last token, [heads, keys] a layer
        for layer in range(self.layers):
            p = f"model.layers.{layer}."
            h = self._norm(x, p + "input_layernorm.weight")
            q, k, v = self._attend(h, positions, p + "self_attn.")
            keys, values = (torch.cat(pair) for pair in zip(cache[layer], (k, v), strict=True))
            cache[layer] = (keys, values)
            queries.append(q)
            repeat = self.heads // self.kv_heads
            logits = torch.einsum("qhd,khd->hqk", q, keys.repeat_interleave(repeat, 1)) * self.dim**-0.5
            if len(ids) > 1:
                logits = logits + torch.full(logits.shape[1:], float("-inf")).triu(1 + len(keys) - len(ids))
            weights = logits.softmax(-1)
            self.attended.append(weights[:, -1])
            out = torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(repeat, 1))
            x = x + self._linear(out.flatten(1), p + "self_attn.o_proj")
            h = self._norm(x, p + "post_attention_layernorm.weight")
            gate = torch.nn.functional.silu(self._linear(h, p + "mlp.gate_proj"))
            x = x + self._linear(gate * self._linear(h, p + "mlp.up_proj"), p + "mlp.down_proj")
        return self._linear(self._norm(x, "model.norm.weight"), "lm_head"), queries

    def _compress(self, rule: Rule, prompt: int, keep: int, cache: list, recent: list) -> float:
        """One compression, as the goldens' README defines it. Returns the smallest relative score gap at the cut."""
        closest = float("inf")
        for layer, (keys, values) in enumerate(cache):
            q = recent[layer][-rule.window :]
            if rule.selector == "official":
                q = torch.cat([q[1:], q[-1:]])
            begin, end = prompt + rule.first, len(keys) - rule.window
            repeat = self.heads // self.kv_heads
            candidates = keys[begin:end].repeat_interleave(repeat, 1)
            attention = (torch.einsum("rhd,nhd->hrn", q, candidates) * self.dim**-0.5).softmax(-1).sum(1)
            scores = attention.view(self.kv_heads, repeat, -1).mean(1) if rule.group else attention.mean(0)[None]
            pool = torch.nn.functional.avg_pool1d if rule.pooling == "avg" else torch.nn.functional.max_pool1d
            scores = pool(scores[:, None], rule.kernel_size, 1, rule.kernel_size // 2)[:, 0]
            ranked = scores.sort(-1, descending=True).values
            closest = min(closest, float(((ranked[:, keep - 1] - ranked[:, keep]) / ranked[:, keep - 1]).min()))
            chosen = scores.topk(keep).indices.sort(-1).values + begin
            chosen = chosen.expand(self.kv_heads, -1)
            heads = torch.arange(self.kv_heads)
            cache[layer] = tuple(torch.cat([t[:begin], t[chosen.T, heads], t[end:]]) for t in (keys, values))
        return closest

    @torch.inference_mode()
    def gaps(self, prompt: list[int], output: list[int], rule: Rule | None) -> tuple[list[float], float]:
        """For each output token how far its logit lies below the best one, and the closest call of any selection.

        `rule.until`: no compression once this many entries have been generated (a think segment that ended).
        """
        empty = tuple(torch.empty(0, self.kv_heads, dim) for dim in (self.dim, self.value_dim))
        cache = [empty for _ in range(self.layers)]
        last, _ = self._forward(torch.tensor(prompt), torch.arange(len(prompt)), cache)
        recent = [torch.empty(0, self.heads, self.dim)] * self.layers
        gaps, closest, step = [], float("inf"), 0
        while step < len(output):
            due = min(self._next_due(step, rule), step + self.at_once, len(output))
            tokens = torch.tensor(output[step:due])
            logits, queries = self._forward(tokens, torch.arange(step, due) + len(prompt), cache)
            before = torch.cat([last[-1:], logits[:-1]])  # what each of the tokens was chosen from
            gaps += (before.max(-1).values - before.gather(1, tokens[:, None])[:, 0]).tolist()
            recent = [torch.cat(pair)[-64:] for pair in zip(recent, queries, strict=True)]
            last, step = logits, due
            if rule is not None and self._is_due(step, rule):
                keep = (step - rule.first - rule.window) // rule.interval * int(rule.interval / rule.ratio)
                closest = min(closest, self._compress(rule, len(prompt), keep, cache, recent))
        return gaps, closest

    @torch.inference_mode()
    def turns(self, turns: list[tuple[list[int], list[int]]], rule: Rule) -> list[list[float]]:
        """`gaps` of each turn (tokens that it is given, tokens that it generates), when a turn goes on from all that
        the one before holds: what is held then counts as its prompt, compressed or not."""
        empty = tuple(torch.empty(0, self.kv_heads, dim) for dim in (self.dim, self.value_dim))
        cache, position, last, result = [empty for _ in range(self.layers)], 0, [], []
        for given, output in turns:
            fed = torch.tensor([*last, *given])
            logits, _ = self._forward(fed, torch.arange(len(fed)) + position, cache)
            position, prompt = position + len(fed), len(cache[0][0])
            gaps, recent = [], [torch.empty(0, self.heads, self.dim)] * self.layers
            for step, token in enumerate(output):
                gaps.append(float(logits[-1].max() - logits[-1, token]))
                if step == len(output) - 1:
                    break  # the newest token of a turn has no entry
                logits, queries = self._forward(torch.tensor([token]), torch.tensor([position]), cache)
                position += 1
                recent = [torch.cat(pair)[-64:] for pair in zip(recent, queries, strict=True)]
                if step + 2 < len(output) and self._is_due(step + 1, rule):
                    keep = (step + 1 - rule.first - rule.window) // rule.interval * int(rule.interval / rule.ratio)
                    self._compress(rule, prompt, keep, cache, recent)
            last = output[-1:]
            result.append(gaps)
        return result

    @torch.inference_mode()
    def continued(self, turns: list[tuple[list[int], list[int]]], rule: Rule) -> list[list[float]]:
        """`gaps` of each turn when all that is generated is one region, with one budget: what later turns are given is
        never compressed, and has no queries, so that a window is complete R generated tokens after it."""
        empty = tuple(torch.empty(0, self.kv_heads, dim) for dim in (self.dim, self.value_dim))
        cache, result = [empty for _ in range(self.layers)], []
        position = front = entries = dates = since = 0
        recent = [torch.empty(0, self.heads, self.dim)] * self.layers

        def generate(token: int) -> torch.Tensor:
            """Its entry, and the compression that is due after it."""
            nonlocal position, entries, dates, recent
            logits, queries = self._forward(torch.tensor([token]), torch.tensor([position]), cache)
            position, entries = position + 1, entries + 1
            recent = [torch.cat(pair)[-64:] for pair in zip(recent, queries, strict=True)]
            return logits[-1]

        def compress() -> None:
            nonlocal dates
            due = (entries - rule.window) // rule.interval
            if due > dates and entries - since >= rule.window:
                dates = due
                self._compress(rule, front, due * int(rule.interval / rule.ratio), cache, recent)

        for given, output in turns:
            if given:
                ids = torch.tensor(given)
                logits, _ = self._forward(ids, torch.arange(len(ids)) + position, cache)
                logits, position = logits[-1], position + len(ids)
                cache[:] = [
                    tuple(torch.cat([t[:front], t[len(t) - len(ids) :], t[front : len(t) - len(ids)]]) for t in layer)
                    for layer in cache
                ]
                front, since = front + len(ids), entries
            gaps = []
            for step, token in enumerate(output):
                gaps.append(float(logits.max() - logits[token]))
                if step or entries:
                    compress()
                logits = generate(token)
            result.append(gaps)
        return result

    @staticmethod
    def _is_due(generated: int, rule: Rule) -> bool:
        due, rest = divmod(generated - rule.first - rule.window, rule.interval)
        return due >= 1 and rest == 0 and generated < rule.until

    def _next_due(self, generated: int, rule: Rule | None) -> int:
        """The number of generated tokens, above this one, at which the next compression is due."""
        if rule is None:
            return 10**9
        after = max(0, generated - rule.first - rule.window) // rule.interval + 1
        return rule.first + rule.window + after * rule.interval
