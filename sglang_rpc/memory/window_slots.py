"""Sliding-window layers with a pool of their own: a compression moves no KV of theirs, but which slots a row has there.

A map leads from each slot of the other layers to the window layers' slot for the same entry, or to 0 where the entry
has left the window and its slot was freed. In a row these are all entries before the cursor. With E entries evicted, b
the first candidate, L and N the row's lengths before and after, every window layer keeps the newest candidates:

    row:   [0, cursor) freed   [.., b) prompt and kept whole   [b, b + E) oldest candidates: freed   [b + E, L) newest
    after: [0, cursor) freed   [.., b) prompt and kept whole   [b, N) the slots that [b + E, L) had   [N, L) none

In pools of pages a slot's place in its page is the same in both, so E is a multiple of the page, and what moves begins
with b's page. The entries before b in that page lose their slots in the window layers. They lie outside every window
that is still to come, and the prefix tree owns whole pages of the prompt only.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class WindowPool:
    """A pool for window layers alone, as far as decisions depend on it."""

    layers: int  #: that have their KV there
    reach: int  #: entries before its own that a token of these layers sees, at most
    page: int  #: slots; a compression evicts whole pages


@dataclass(frozen=True)
class SlotMove:
    """What one compression does to the window layers' slots of a row. Ranges [a, b) are row positions."""

    freed: tuple[int, int]  #: their slots are given back: whole pages, none where a = b
    moved: tuple[int, int]  #: their slots are `evicted` positions further to the front afterwards
    emptied: tuple[int, int]  #: the row's old end: no slots afterwards
    cursor: int  #: afterwards, positions before it have no slots, but those that the prefix tree owns

    @classmethod
    def of(cls, begin: int, end: int, evicted: int, cursor: int, page: int) -> "SlotMove":
        """For a row of `end` entries whose candidates begin at `begin`, and that loses `evicted`, in whole pages.

        Args:
            cursor: before the compression, on a page boundary.
        """
        assert evicted % page == 0, f"{evicted} entries are no whole pages of {page}"
        assert cursor % page == 0, f"the cursor {cursor} splits a page of {page}"
        first = begin // page * page
        kept = first + evicted  # from here on
        return cls(
            freed=(min(max(cursor, first), kept), kept),
            moved=(max(cursor, kept), end),
            emptied=(end - evicted, end),
            cursor=cursor if cursor <= first else max(first, cursor - evicted),
        )


def move_slots(mapping: torch.Tensor, row: torch.Tensor, move: SlotMove, evicted: int) -> None:
    """Move a row's slots of window layers, in place, on the current stream; those of `move.freed` have been given back.

    Args:
        mapping: int64, by slot of the other layers: the window layers' slot; 0 for none.
        row: int [positions], the row's slots in the other layers.
    """
    first, end = move.moved
    slots = row[first - evicted : end].long()
    source, target = slots[evicted:], slots[: end - first]
    mapping[target] = mapping[source]  # gathers a copy before anything is written
    # Not `= 0`: of a number on the host the device would have to be waited for.
    mapping.index_fill_(0, row[slice(*move.emptied)].long(), 0)
