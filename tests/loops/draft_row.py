"""A row of a model and of its draft, about to be compressed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sglang_rpc.backends.base import Backend
from sglang_rpc.backends.draft_backend import DraftBackend
from sglang_rpc.backends.reference_backend import ReferenceBackend
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.queries import Queries
from sglang_rpc.memory.query_ring import DraftQueries, QueryRing
from sglang_rpc.policy.resolve import find_policy
from sglang_rpc.types import Compression, KVLayer

if TYPE_CHECKING:
    from sglang_rpc.backends.triton_backend import TritonBackend

POOL, PROMPT, WINDOW, DIM, DRAFTS = 400, 4, 4, 8, 3
TOKENS = 69  #: of the text, its prompt among them
KEEP = 15


def compression(**more) -> Compression:
    """Of a row whose newest token has no entry yet."""
    end = TOKENS - 1
    c = Compression(row=1, slot=1, prompt_length=PROMPT, generated=end - PROMPT, window=WINDOW, begin=PROMPT, end=end,
                    keep=KEEP, query_before=True)  # fmt: skip
    return replace(c, **more)


class Case:
    """A model and a draft with the model's weights, in effect: keys, values and queries of a token are the same in
    both. Values name tokens; the draft has each of them one entry earlier."""

    def __init__(
        self,
        aggregation: str = "all",
        policy: str = "rpc",
        layers: int = 2,
        kv_heads: int = 2,
        backend: type[ReferenceBackend | TritonBackend] = ReferenceBackend,
        device: str = "cpu",
    ):
        self.backend, self.device = backend, device
        self.random = torch.Generator().manual_seed(2)
        self.config = RPCConfig(interval=40, window=WINDOW, ratio=4, aggregation=aggregation, policy=policy)
        self.table = torch.zeros(3, 80, dtype=torch.int32)
        self.table[1] = torch.randperm(POOL - 1, generator=self.random)[:80] + 1
        heads = 2 * kv_heads
        shape = dict(heads=heads, head_dim=DIM, dtype=torch.float32)
        self.ring = QueryRing(layers=layers, slots=1, rows=3, window=WINDOW, device=device, drafts=DRAFTS, **shape)
        DraftQueries(self.ring, layers=layers, **shape)
        self.table = self.table.to(device)
        self.keys = torch.randn(layers, TOKENS, kv_heads, DIM, generator=self.random)
        self.queries = 3 * torch.randn(layers, TOKENS, heads, DIM, generator=self.random)
        self.model, self.draft = self._filled(self.ring, 0), self._filled(self.ring.draft, 1)

    def _filled(self, queries, ahead: int) -> list[KVLayer]:
        """Layers whose entry i is of token i + `ahead`; of their queries the newest R + 1, else noise."""
        tokens = torch.arange(TOKENS - 1) + ahead
        slots, found = self.table[1, : TOKENS - 1].long().cpu(), []
        for layer in range(self.keys.shape[0]):
            keys = torch.randn(POOL, *self.keys.shape[2:], generator=self.random)
            values = torch.zeros(POOL, self.keys.shape[2], 2)
            keys[slots], values[slots] = self.keys[layer, tokens], tokens[:, None, None].float()
            found.append(KVLayer(keys.to(self.device), values.to(self.device), torch.float32, 0.3))
            queries.buffer[layer] = torch.randn(queries.buffer[layer].shape, generator=self.random)
            newest = torch.arange(TOKENS - 1 - WINDOW - 1, TOKENS - 1)
            own = self.queries[layer, newest + ahead].to(self.device)
            newest = newest.to(self.device)
            where = self.ring.where(torch.ones_like(newest), newest)
            queries.store(layer, (torch.ones_like(newest), where[1]), own)
        return found

    def compress(self, c: Compression, drafts: Compression | None = None) -> None:
        self._backend(self.model, self.ring).compress([c])
        DraftBackend(self._backend(self.draft, self.ring.draft), self.draft, self.table).compress([drafts or c])

    def _backend(self, layers: list[KVLayer], queries: Queries) -> Backend:
        return self.backend(self.config, find_policy(self.config.policy), layers, queries, self.table, None)

    def tokens(self, layer: KVLayer, head: int, upto: int) -> list[int]:
        return layer.values[self.table[1, :upto].long(), head, 0].long().tolist()
