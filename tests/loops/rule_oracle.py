"""What a policy that scores by a rule must keep: in float64, one query after the other, by logical position."""

from __future__ import annotations

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.resolve import find_policy
from sglang_rpc.types import Compression, ScoreRule
from tests.loops.oracle import Choice


def scores(
    rule: ScoreRule,
    *,
    queries: torch.Tensor,
    at: list[int],
    keys: torch.Tensor,
    positions: list[int],
    candidates: list[int],
    norms: torch.Tensor,
    scaling: float,
    logit_cap: float = 0.0,
) -> torch.Tensor:
    """Score of each candidate of one KV head, float64 [N].

    Args:
        queries: [R, heads of this KV head, dim], of the tokens at positions `at`.
        keys: [entries, dim], held at `positions`, which ascend.
        candidates: positions, some of `positions`.
        norms: [N], of the candidates' values.
    """
    place = {position: index for index, position in enumerate(positions)}
    weights = torch.zeros(*queries.shape[:2], len(candidates), dtype=torch.float64)
    for query, own in enumerate(at):
        seen = [p for p in positions if p <= own] if rule.softmax == "visible" else candidates
        logits = queries[query].double() @ keys[[place[p] for p in seen]].double().T * scaling
        if logit_cap:
            logits = logit_cap * (logits / logit_cap).tanh()
        each = torch.zeros(len(logits), max(positions) + 1, dtype=torch.float64)
        each[:, seen] = logits.exp() / logits.exp().sum(-1, keepdim=True)
        weights[query] = each[:, candidates]
    per_query = {"sum": weights.sum(0), "max": weights.max(0).values, "squares": (weights**2).sum(0)}
    of_heads = per_query[rule.over_queries]
    total = of_heads.max(0).values if rule.over_heads == "max" else of_heads.sum(0)
    return total * norms.double() ** rule.value_power


def paired(scores: torch.Tensor) -> torch.Tensor:
    """Scores of entries in their order, each at least half of the one before it."""
    values = scores.tolist()
    halves = [0.0, *(value / 2 for value in values[:-1])]
    return torch.tensor([max(pair) for pair in zip(values, halves, strict=True)], dtype=scores.dtype)


class RuleOracle:
    """As `oracle.Oracle`, of a policy with a rule, every query once; pooled in pairs or not; values are positions."""

    def __init__(
        self, config: RPCConfig, keys: torch.Tensor, queries: torch.Tensor, scaling: float, logit_cap: float
    ) -> None:
        policy = find_policy(config.policy)
        assert policy is not None
        assert policy.rule is not None
        assert policy.selector == "paper"
        assert policy.pooling in (None, "pairs")
        self.rule, self.group = policy.rule, config.aggregation == "group"
        self.paired = policy.pooling == "pairs"
        self.keys, self.queries, self.scaling, self.logit_cap = keys, queries, scaling, logit_cap

    def expected(self, row: int, prompt: int, held: list[list[list[int]]], c: Compression) -> list[list[Choice]]:
        """The choice of each [layer][KV head]; `held` are the positions after the prompt that each holds before `c`."""
        start, result = c.begin - prompt, []
        for layer, heads in enumerate(held):
            each = [self._scores(row, layer, head, prompt, positions, c) for head, positions in enumerate(heads)]
            if not self.group:
                each = [torch.stack(each).sum(0)] * len(heads)
            if self.paired:
                each = [paired(own) for own in each]
            result.append(
                [
                    Choice(p[:start], p[start : -c.window], own, p[-c.window :], c.keep)
                    for p, own in zip(heads, each, strict=True)
                ]
            )
        return result

    def _scores(
        self, row: int, layer: int, head: int, prompt: int, generated: list[int], c: Compression
    ) -> torch.Tensor:
        positions = [*range(prompt), *(prompt + p for p in generated)]
        candidates = positions[c.begin : -c.window]
        newest = list(range(prompt + c.generated - c.window, prompt + c.generated))
        per_group = self.queries.shape[3] // self.keys.shape[3]
        return scores(
            self.rule,
            queries=self.queries[row, layer, newest, head * per_group : (head + 1) * per_group],
            at=newest,
            keys=self.keys[row, layer, positions, head],
            positions=positions,
            candidates=candidates,
            norms=torch.tensor(candidates),
            scaling=self.scaling,
            logit_cap=self.logit_cap,
        )
