"""The last R queries of the requests that are about to be compressed.

A request takes a query slot R steps before its compression and gives it back right after, so a few slots serve many
requests.

A server that speculates has n entries more, those of the rows that a request verifies in a step. All are written. The
next step begins right after what was accepted, so the last write of a position is that of its token. Rejected ones lie
fewer than n positions ahead: with R + n entries none of them falls into the window.

Drafts that branch share positions, and which of them is accepted is known only after the forward pass. So each row's
query waits beside the ring, in the step's order. Afterwards those of the accepted path move to the entries of their
positions. A CUDA graph replays the writes; the move is made after it.

Slot 0 is the dummy slot: every row that owns no slot writes there.

A draft model has queries of its own, in the slots of the same requests. It is shown each token one position early, so a
slot has its queries of the same positions.
"""

import itertools
from collections import OrderedDict
from typing import Any

import torch

from sglang_rpc.memory.queries import Queries


class QueryRing(Queries):
    """The slots, and the model's queries in them. `slot_of_row`: int64 [rows]."""

    def __init__(self, *, slots: int, rows: int, device: torch.device | str, **shape: Any):
        """`shape`: the other arguments of `Queries`."""
        super().__init__(slots=slots, device=device, **shape)
        self.slots = slots
        self.draft: DraftQueries | None = None  #: of a server whose drafts come from a model
        self.trees: TreeQueries | None = None  #: of a server whose drafts branch
        self.slot_of_row = torch.zeros(rows, dtype=torch.int64, device=device)
        self._free = list(range(slots, 0, -1))
        self._parked: OrderedDict[int, int] = OrderedDict()  # ticket -> free slot with queries that may be of use
        self._tickets = itertools.count(1)
        self._row_of_slot: dict[int, int] = {}

    @property
    def in_use(self) -> int:
        """Slots that are taken."""
        return len(self._row_of_slot)

    @property
    def free(self) -> int:
        """Slots that are not taken."""
        return len(self._free) + len(self._parked)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory, of a draft's queries and a step's too."""
        beside = (each for each in (self.draft, self.trees) if each is not None)
        return self.buffer.nbytes + sum(each.buffer.nbytes for each in beside)

    def of(self, slot: int) -> tuple[torch.Tensor, ...]:
        """All queries in a slot, [layers, entries, heads, head_dim] each: the model's, and its draft's."""
        held = self.buffer[:, slot]
        return (held,) if self.draft is None else (held, self.draft.buffer[:, slot])

    def row_of(self, slot: int) -> int:
        """The row whose queries go into a slot that is taken."""
        return self._row_of_slot[slot]

    def acquire(self, row: int) -> int | None:
        """A slot for the request in `row`, from its next decode step on; None if every slot is taken."""
        if not self.free:
            return None
        slot = self._free.pop() if self._free else self._parked.popitem(last=False)[1]
        self._row_of_slot[slot] = row
        self.slot_of_row[row].fill_(slot)  # a kernel, no copy: the host does not wait
        return slot

    def release(self, slot: int) -> None:
        """Give the slot back. Its row writes to the dummy slot from the next decode step on."""
        row = self._row_of_slot.pop(slot)
        self.slot_of_row[row].fill_(0)
        self._free.append(slot)

    def park(self, slot: int) -> int:
        """Give the slot back; its queries stay as long as there are others. Returns a ticket to find them by."""
        self.release(slot)
        ticket = next(self._tickets)
        self._parked[ticket] = self._free.pop()
        return ticket

    def parked(self, ticket: int) -> int | None:
        """The slot that was given back for this ticket; None if it is another's by now."""
        return self._parked.get(ticket)

    def where(self, rows: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where a step's queries go: (slots, entries), int64 [n] each. Rows that own no slot get the dummy."""
        return self.slot_of_row[rows], positions % self.entries


class DraftQueries(Queries):
    """A draft model's queries, in the slots of a ring; its layers have a shape of their own."""

    def __init__(self, ring: QueryRing, *, layers: int, heads: int, head_dim: int, dtype: torch.dtype):
        super().__init__(
            layers=layers,
            slots=ring.slots,
            window=ring.window,
            heads=heads,
            head_dim=head_dim,
            dtype=dtype,
            device=ring.buffer.device,
            drafts=ring.drafts,
        )
        self._ring = ring
        self.trees = None  # its own steps are chains
        ring.draft = self

    @property
    def in_use(self) -> int:
        """Slots that are taken."""
        return self._ring.in_use

    def where(self, rows: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `QueryRing.where`."""
        return self._ring.where(rows, positions)


class TreeQueries(Queries):
    """Queries of one step's rows that verify a tree, of those that own a slot of a ring.

    Shape: `buffer` [layers, slots + 1, n, heads, head_dim].
    """

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
