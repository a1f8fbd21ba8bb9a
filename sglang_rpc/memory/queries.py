"""Queries of the newest tokens of the requests that are recorded, of all layers of one model.

Entry `position % entries` of a slot holds the query of the token at that logical position: order needs no counter, and
the write is one index_put on static buffers, which a CUDA graph can replay.
"""

import importlib.util
from collections.abc import Callable

import torch


class Queries:
    """`buffer` [layers, slots + 1, window + drafts, heads, head_dim] in the queries' dtype. `drafts` is n, the rows
    that a request verifies in a step; 0 where a step has one. Slot 0 is nobody's."""

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        window: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        drafts: int = 0,
    ):
        self.window = window
        self.drafts = drafts
        self.entries = window + drafts  #: positions whose queries a slot holds
        shape = (layers, slots + 1, self.entries, heads, head_dim)
        self.buffer = torch.zeros(shape, dtype=dtype, device=device)
        self._kernel = _store_kernel() if self.buffer.is_cuda else None

    @staticmethod
    def slot_bytes(layers: int, window: int, heads: int, head_dim: int, dtype: torch.dtype, drafts: int = 0) -> int:
        """Bytes of one slot."""
        return layers * (window + drafts) * heads * head_dim * dtype.itemsize

    def store(self, layer: int, where: tuple[torch.Tensor, torch.Tensor], *queries: torch.Tensor) -> None:
        """Write one query per row. The dummy slot's content is nobody's.

        Args:
            queries: [n, heads * head_dim] or [n, heads, head_dim], or in parts (MLA's absorbed and roped), each with
                its own share of the head dim.
        """
        heads, head_dim = self.buffer.shape[3:]
        first = 0
        for part in queries:
            width = part.shape[2] if part.dim() == 3 else part.shape[1] // heads
            part = part.view(-1, heads, width)
            target = self.buffer[layer, ..., first : first + width]
            if self._kernel is not None and part.stride(2) == 1:
                self._kernel(target, *where, part)
            else:
                target.index_put_(where, part.to(self.buffer.dtype))
            first += width
        assert first == head_dim, f"queries of {first} dims in a ring for {head_dim}"

    def last(self, slot: int, length: int, window: int) -> torch.Tensor:
        """The queries of the last `window` (<= R) tokens of a sequence of logical `length`, oldest first:
        [layers, window, heads, head_dim], gathered."""
        entries = torch.arange(length - window, length, device=self.buffer.device) % self.entries
        return self.buffer[:, slot].index_select(1, entries)


def _store_kernel() -> Callable[..., None] | None:
    """The Triton write, if Triton is installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    from sglang_rpc.memory.triton_ring import store

    return store
