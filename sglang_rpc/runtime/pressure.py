"""When the pool is short: the watermarks between which it counts as under memory pressure, and who gives way first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sglang_rpc.types import Compression


class Watermarks:
    """Whether there is memory pressure: from `high` on, until usage falls below `low`. Shares of the pool."""

    def __init__(self, high: float, low: float):
        self.high = high
        self.low = low
        self.under_pressure = False
        self.crossings = 0  #: times it became under memory pressure

    def update(self, usage: float) -> bool:
        """Whether `under_pressure` has changed."""
        if self.under_pressure:
            changed = usage < self.low
        else:
            changed = usage >= self.high
            self.crossings += changed
        self.under_pressure ^= changed
        return changed


def slots_freed(compression: Compression, page: int) -> int:
    """Pool slots that the compression gives back: whole pages behind what is kept."""
    return (-(-compression.end // page) - -(-compression.new_end // page)) * page


def by_slots_per_entry(candidates: Sequence[Compression], page: int) -> list[Compression]:
    """First those that free most slots for each entry evicted, and of these the largest: nearest to its due date."""
    return sorted(candidates, key=lambda c: (slots_freed(c, page) / c.evicted, c.evicted), reverse=True)


def factors(ratio: float, highest: float) -> Iterator[float]:
    """By how much to raise each request's own ratio, in turn: not at all, then twice as much each time, as long as
    the server's stays within `highest`."""
    factor = 1.0
    while factor * ratio < highest:
        yield factor
        factor *= 2
    yield highest / ratio if highest > ratio else 1.0
