"""The last R queries of the requests that are about to be compressed.

A request takes a query slot R steps before its compression and gives it back right after, so a few slots serve many
requests. Entry `position % R` of a slot holds the query of the token at that logical position: order needs no counter,
and the write is one index_put on static buffers, which a CUDA graph can replay.

A server that speculates has n entries more, those of the rows that a request verifies in a step. All are written. The
next step begins right after what was accepted, so the last write of a position is that of its token. Rejected ones lie
fewer than n positions ahead: with R + n entries none of them falls into the window.

Slot 0 is the dummy slot: every row that owns no slot writes there.
"""

import importlib.util
import itertools
from collections import OrderedDict
from collections.abc import Callable

import torch


class QueryRing:
    """Ring buffers for `slots` requests, all layers.

    Shapes: `buffer` [layers, slots + 1, window + drafts, heads, head_dim] in the queries' dtype; `slot_of_row` int64
    [rows]. `drafts` is n, the rows that a request verifies in a step; 0 where a step has one.
    """

    def __init__(
        self,
        *,
        layers: int,
        slots: int,
        rows: int,
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
        self.slots = slots
        shape = (layers, slots + 1, self.entries, heads, head_dim)
        self.buffer = torch.zeros(shape, dtype=dtype, device=device)
        self._kernel = _store_kernel() if self.buffer.is_cuda else None
        self.slot_of_row = torch.zeros(rows, dtype=torch.int64, device=device)
        self._free = list(range(slots, 0, -1))
        self._parked: OrderedDict[int, int] = OrderedDict()  # ticket -> free slot with queries that may be of use
        self._tickets = itertools.count(1)
        self._row_of_slot: dict[int, int] = {}

    @staticmethod
    def slot_bytes(layers: int, window: int, heads: int, head_dim: int, dtype: torch.dtype, drafts: int = 0) -> int:
        """Bytes of one slot."""
        return layers * (window + drafts) * heads * head_dim * dtype.itemsize

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
        """Bytes of device memory."""
        return self.buffer.nbytes

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
