"""Counts compressions that score with queries which nobody has recorded since their slot was taken.

A replayed CUDA graph that lacks the write, or a forward that goes round the hook, would leave those of another request.
"""

from __future__ import annotations

import torch

from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.runtime.compressor import Compressor
from sglang_rpc.types import Compression

_NOT_RECORDED = float("nan")

_stale: torch.Tensor | None = None  #: on the device, which is not waited for


def watch() -> None:
    """From now on in this process."""
    acquire, compress = QueryRing.acquire, Compressor.compress

    def acquired(ring: QueryRing, row: int) -> int | None:
        slot = acquire(ring, row)
        if slot is not None:
            for queries in ring.of(slot):
                queries.fill_(_NOT_RECORDED)
        return slot

    def compressed(compressor: Compressor, compressions: list[Compression]) -> None:
        for c in compressions:
            if c.slot:
                _count(compressor.ring, c)
        compress(compressor, compressions)

    QueryRing.acquire = acquired
    Compressor.compress = compressed


def stale() -> int:
    """Compressions so far, of a model's layers or a draft's, that had such queries."""
    return 0 if _stale is None else int(_stale)


def _count(ring: QueryRing, c: Compression) -> None:
    global _stale
    length = c.prompt_length + c.generated
    found = [ring.last(c.slot, length, c.window)]
    if ring.draft is not None:
        without_newest = c.query_before and c.keep > 1  # as `DraftBackend` scores it
        found.append(ring.draft.last(c.slot, length - without_newest, c.window))
    bad = torch.stack([queries.isnan().any() for queries in found]).sum()
    _stale = bad if _stale is None else _stale + bad
