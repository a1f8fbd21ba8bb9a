"""Compression in plain PyTorch: on every device and under every policy, one request and layer at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglang_rpc.backends.base import Reduce
from sglang_rpc.backends.policy_scores import policy_layer, summed
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.compaction import move_kept
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy.base import Policy
from sglang_rpc.policy.table import POLICIES
from sglang_rpc.scoring import reference
from sglang_rpc.types import Compression, KVLayer, Observer


class ReferenceBackend:
    name = "reference"

    def __init__(
        self,
        config: RPCConfig,
        layers: Sequence[KVLayer],
        ring: QueryRing,
        req_to_token: torch.Tensor,
        reduce: Reduce | None,
        policy: Policy = POLICIES["rpc"],
    ):
        """Arguments: see runtime.compressor.Compressor."""
        self._config = config
        self._policy = policy
        self._layers = layers
        self._ring = ring
        self._req_to_token = req_to_token
        self._reduce = reduce
        self._group = config.aggregation == "group"
        self.observer: Observer | None = None

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream."""
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # some models turn TF32 on; scores are float32
        try:
            self._compress(compressions)
        finally:
            torch.set_float32_matmul_precision(precision)

    def _compress(self, compressions: Sequence[Compression]) -> None:
        slots = [self._req_to_token[c.row, c.begin : c.end].long() for c in compressions]
        scores = [self._score(c, s) for c, s in zip(compressions, slots, strict=True)]
        if self._reduce is not None:
            # One collective for all layers and requests; every rank then selects from equal scores.
            flat = self._reduce(torch.cat([s.flatten() for s in scores]))
            pieces = flat.split([s.numel() for s in scores])
            scores = [piece.view_as(s) for piece, s in zip(pieces, scores, strict=True)]
        for c, own, score in zip(compressions, slots, scores, strict=True):
            kept = reference.select(score.flatten(0, 1), c.keep, *self._pooling()).view(*score.shape[:2], c.keep)
            if self.observer is not None:
                self.observer([c], kept[:, None])
            for layer, layer_kept in zip(self._layers, kept, strict=True):
                move_kept(layer.buffers, own, layer_kept, c.candidates)

    def _pooling(self) -> tuple[int, str]:
        pooling = self._policy.pooling
        if pooling is None:
            return 1, "max"  # of one score: none
        return self._config.kernel_size, self._config.pooling if pooling == "config" else pooling

    def _score(self, c: Compression, slots: torch.Tensor) -> torch.Tensor:
        """float32 [layers, 1 or kv_heads, candidates], summed over heads: their order is that of the means."""
        queries = self._ring.last(c.slot, c.prompt_length + c.generated, c.window)
        candidates, newest = slots[: c.candidates], slots[c.candidates :]
        rows = []
        for index, (layer, q) in enumerate(zip(self._layers, queries, strict=True)):
            seen = policy_layer(
                layer, q, candidates, newest, index=index, before=c.begin, seed=c.seed, group=self._group
            )
            rows.append(summed(self._policy.scores(seen, self._config), layer.keys.shape[1], self._group))
        return torch.stack(rows)
