"""Compression in plain PyTorch: on every device and under every policy, one request and layer at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from sglang_rpc.backends.base import Reduce
from sglang_rpc.backends.policy_scores import policy_layer, summed
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.compaction import move_kept, move_newest
from sglang_rpc.memory.queries import Queries
from sglang_rpc.policy.base import Policy
from sglang_rpc.scoring import reference
from sglang_rpc.types import Compression, KVLayer, LayersByKind, Observer


@dataclass(eq=False)
class ReferenceBackend:
    """The backend in PyTorch. `policy` is None under lightthinker; other fields: see runtime.compressor.Compressor."""

    config: RPCConfig
    policy: Policy | None
    layers: Sequence[KVLayer]
    ring: Queries
    req_to_token: torch.Tensor
    reduce: Reduce | None
    observer: Observer | None = None
    name = "reference"

    @cached_property
    def _by_kind(self) -> LayersByKind:
        return LayersByKind.of(self.layers)

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream."""
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # some models turn TF32 on; scores are float32
        try:
            self._compress(compressions)
        finally:
            torch.set_float32_matmul_precision(precision)

    def _compress(self, compressions: Sequence[Compression]) -> None:
        slots = [self.req_to_token[c.row, c.begin : c.end].long() for c in compressions]
        by_kind = self._by_kind
        for c, own, kept in zip(compressions, slots, self._kept(compressions, slots), strict=True):
            if self.observer is not None:
                self.observer([c], kept[:, None])
            for layer, layer_kept in zip(by_kind.full, kept, strict=True):
                move_kept(layer.buffers, own, layer_kept, c.candidates)
            for layer in by_kind.windows:
                move_newest(layer.buffers, own, c.keep + c.window)

    def _kept(self, compressions: Sequence[Compression], slots: list[torch.Tensor]) -> list[torch.Tensor]:
        """The candidates that stay where they are scored, ascending: int64 [layers, 1 or kv_heads, keep] of each
        compression."""
        policy = self.policy
        if policy is None:  # lightthinker keeps nothing of a thought
            return [own.new_zeros(len(self._by_kind.full), 1, 0) for own in slots]
        scores = [self._score(policy, c) for c in compressions]
        if self.reduce is not None:
            # One collective for all layers and requests; every rank then selects from equal scores.
            flat = self.reduce(torch.cat([s.flatten() for s in scores]))
            pieces = flat.split([s.numel() for s in scores])
            scores = [piece.view_as(s) for piece, s in zip(pieces, scores, strict=True)]
        pooling = policy.pooling_in(self.config)
        return [
            reference.select(s.flatten(0, 1), c.keep, *pooling).view(*s.shape[:2], c.keep)
            for c, s in zip(compressions, scores, strict=True)
        ]

    def _score(self, policy: Policy, c: Compression) -> torch.Tensor:
        """float32 [layers, 1 or kv_heads, candidates], summed over heads: their order is that of the means."""
        slots = self.req_to_token[c.row, : c.end].long()
        queries = self.ring.last(c.slot, c.prompt_length + c.generated, c.window)
        group = self.config.aggregation == "group"
        rows = []
        for index, (layer, q) in enumerate(zip(self._by_kind.full, queries, strict=True)):
            seen = policy_layer(layer, q, slots, index=layer.earlier + index, before=c.begin, seed=c.seed, group=group)
            rows.append(summed(policy.scores(seen, self.config), layer.keys.shape[1], group))
        return torch.stack(rows)
