"""Memory pressure: the watermarks between which it holds, and the order of early compressions."""

from collections.abc import Iterator, Sequence

from sglang_rpc.runtime.pages import ceil_align
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


def slots_freed(compression: Compression, page: int, ahead: int = 0) -> int:
    """Pool slots that the compression gives back: whole pages after what is kept, and after `ahead` slots that the row
    has for entries to come."""
    return ceil_align(compression.end + ahead, page) - ceil_align(compression.new_end + ahead, page)


def by_slots_per_entry(candidates: Sequence[Compression], page: int) -> list[Compression]:
    """Requests are compressed in order of slots freed per evicted entry; of equals, the largest, nearest to its due
    date, comes first."""
    return sorted(candidates, key=lambda c: (slots_freed(c, page) / c.evicted, c.evicted), reverse=True)


def factors(ratio: float, highest: float) -> Iterator[float]:
    """Factors on each request's own ratio, in the order to try them: 1, then twice as much each time, as long as the
    server's ratio stays within `highest`."""
    factor = 1.0
    while factor * ratio < highest:
        yield factor
        factor *= 2
    yield highest / ratio if highest > ratio else 1.0
