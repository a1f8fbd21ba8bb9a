"""Compression of a draft model's layers, by their own queries, as their model's are compressed.

SGLang shows a draft each token one position early: its entry i is of the token that the model has at i + 1. So without
its newest entry a draft's row ends with the token that the model's row ends with.

    model   | prompt | candidates  | window |          tokens, at row positions
    draft   | prompt |c| candidates| window |n|        the same tokens, one position earlier

It is compressed as if the newest entry n were not there. So its layers are scored by queries of the tokens that the
model's layers are scored by, among the same candidates. The first of these, c, is where the prompt's KV ends, which
requests share: it stays. One candidate fewer is kept, so that both rows keep equally many entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sglang_rpc.backends.base import Backend
from sglang_rpc.types import Compression, KVLayer, Observer


@dataclass(eq=False)
class DraftBackend:
    """Compresses a draft's `layers` with `backend`, which was made for them."""

    backend: Backend
    layers: Sequence[KVLayer]
    req_to_token: torch.Tensor  #: int [rows, max_context]
    observer: Observer | None = None  #: is shown nothing: what a draft keeps changes no output

    def __post_init__(self) -> None:
        self.name = self.backend.name

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream, without waiting for the device."""
        aligned = [c for c in compressions if _can_align(c)]
        self.backend.compress([_without_newest(c) if _can_align(c) else c for c in compressions])
        if aligned:
            self._move_newest(aligned)

    def _move_newest(self, compressions: Sequence[Compression]) -> None:
        """Each row's newest entry, behind what was kept of the others: to the front, and in its own row."""
        device = self.req_to_token.device
        places = torch.tensor(
            [(c.row, c.end - 1, c.new_end - 1) for c in compressions], pin_memory=device.type == "cuda"
        ).to(device, non_blocking=True)
        rows, source, target = places.unbind(1)
        source, target = self.req_to_token[rows, source].long(), self.req_to_token[rows, target].long()
        for layer in self.layers:
            for buffer in layer.buffers:
                buffer[target] = buffer[source]


def _can_align(c: Compression) -> bool:
    """Whether there is a query for the token before the window, and a candidate to give up. Else the newest entry is
    in the window, as the model's is, with a query of its own."""
    return c.query_before and c.keep > 1


def _without_newest(c: Compression) -> Compression:
    """The compression of a row that has not got its newest entry yet."""
    return replace(c, end=c.end - 1, generated=c.generated - 1, keep=c.keep - 1)
