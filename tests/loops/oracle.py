"""What a row must hold after a compression, from positions alone: in float64, with the formula written as an einsum."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.types import Compression


@dataclass(frozen=True)
class Choice:
    """What one KV head must hold: `keep` candidates of the best scores, between what is kept anyway."""

    before: list[int]
    candidates: list[int]
    scores: torch.Tensor  #: float64, of the candidates
    window: list[int]
    keep: int

    def check(self, held: list[int]) -> None:
        """Equal position for position. Only candidates whose scores tie may stand for each other: a pooling wider than
        the region gives several the same, and float32, the order of summing and a GPU's exponentials say which is
        larger."""
        best = sorted(self.scores.topk(self.keep).indices.tolist())
        expected = self.before + [self.candidates[i] for i in best] + self.window
        if held == expected:
            return
        assert len(held) == len(expected), (held, expected)
        assert held == sorted(held), (held, expected)
        lowest = float(self.scores[best].min())
        for position in {*held} ^ {*expected}:
            score = float(self.scores[self.candidates.index(position)])
            assert abs(score - lowest) < 1e-5 * lowest, (position, score, lowest, held, expected)


@dataclass(frozen=True)
class Oracle:
    """`keys` and `queries` by logical position, of this rank's heads: [row, layer, position, head, dim]."""

    config: RPCConfig
    keys: torch.Tensor
    queries: torch.Tensor
    scaling: float
    logit_cap: float

    def expected(self, row: int, prompt: int, held: list[list[list[int]]], c: Compression) -> list[list[Choice]]:
        """The choice of each [layer][KV head]; `held` are the positions after the prompt that each holds before `c`."""
        start = c.begin - prompt
        group = self.config.aggregation == "group"
        newest = list(range(prompt + c.generated - c.window, prompt + c.generated))
        rows = newest if self.config.selector == "paper" else newest[1:] + newest[-1:]
        result = []
        for layer, heads in enumerate(held):
            scores = []
            for head, positions in enumerate(heads):
                candidates = torch.tensor(positions[start : len(positions) - c.window]) + prompt
                scores.append(self._scores(row, layer, head, candidates, rows))
            if not group:
                scores = [torch.stack(scores).sum(0)] * len(heads)
            result.append([self._choose(p, s, start, c) for p, s in zip(heads, scores, strict=True)])
        return result

    def _scores(self, row: int, layer: int, head: int, candidates: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """The attention that `rows` of queries pay to each of `candidates`, before pooling."""
        per_group = self.queries.shape[3] // self.keys.shape[3]
        keys = self.keys[row, layer, candidates, head].double()
        queries = self.queries[row, layer, rows, head * per_group : (head + 1) * per_group].double()
        logits = torch.einsum("ihd,jd->hij", queries, keys) * self.scaling
        if self.logit_cap:
            logits = self.logit_cap * (logits / self.logit_cap).tanh()
        return logits.softmax(-1).sum((0, 1))

    def _choose(self, positions: list[int], scores: torch.Tensor, start: int, c: Compression) -> Choice:
        half = self.config.kernel_size // 2
        padded = torch.nn.functional.pad(scores, (half, half), value=0.0 if self.config.pooling == "avg" else -1.0)
        windows = padded.unfold(0, self.config.kernel_size, 1)
        pooled = windows.mean(-1) if self.config.pooling == "avg" else windows.amax(-1)
        last = len(positions) - c.window
        return Choice(positions[:start], positions[start:last], pooled, positions[last:], c.keep)
