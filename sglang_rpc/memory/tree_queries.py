"""Queries of a step's rows that verify a tree of drafts.

Siblings share a position, and which of them is accepted is known only after the forward pass. So each row's query waits
beside the ring, in the step's order. Afterwards those of the accepted path move to the entries of their positions. A
CUDA graph replays the writes; the move is made after it.
"""

import torch

from sglang_rpc.memory.queries import Queries
from sglang_rpc.memory.query_ring import QueryRing


class TreeQueries(Queries):
    """Of the rows that own a slot of `ring`: `buffer` [layers, slots + 1, n, heads, head_dim], of one step."""

    def __init__(self, ring: QueryRing):
        layers, _, _, heads, head_dim = ring.buffer.shape
        device, dtype = ring.buffer.device, ring.buffer.dtype
        super().__init__(
            layers=layers, slots=ring.slots, window=0, heads=heads, head_dim=head_dim, dtype=dtype, device=device,
            drafts=ring.drafts,
        )  # fmt: skip
        self._ring = ring
        self._nodes = torch.arange(ring.drafts, device=device)
        ring.trees = self

    def where(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the queries of a step go whose requests, of `rows` [requests], verify n rows each: (slots, entries),
        int64 [requests * n] each. Rows that own no slot get the dummy."""
        shape = rows.shape[0], self.drafts
        slots = self._ring.slot_of_row[rows]
        return slots[:, None].expand(shape).reshape(-1), self._nodes[None].expand(shape).reshape(-1)

    def accept(
        self, rows: torch.Tensor, positions: torch.Tensor, accept_lens: torch.Tensor, accept_index: torch.Tensor
    ) -> None:
        """Move the queries of accepted tokens into the ring. The host does not wait.

        Args:
            positions: [requests], logical, of each request's first row.
            accept_lens: [requests], how many of its rows were accepted.
            accept_index: [requests, depth], which, counted over the step; what stands after these is not read.
        """
        depth = torch.arange(accept_index.shape[1], device=accept_index.device)
        first = self.drafts * torch.arange(accept_index.shape[0], device=accept_index.device)
        nodes = (accept_index - first[:, None]).clamp(min=0).long()
        slots = torch.where(depth < accept_lens[:, None], self._ring.slot_of_row[rows][:, None], 0)
        entries = (positions[:, None] + depth) % self._ring.entries
        # Within a slot no entry is written twice: a path is no longer than n, and a slot has more entries.
        self._ring.buffer[:, slots, entries] = self.buffer[:, slots, nodes]
