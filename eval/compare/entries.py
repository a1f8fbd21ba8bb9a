"""How many KV entries of its generated tokens a request held over its life, by the budget's arithmetic.

Lengths are g = 1, 2, ... as the tokens come. A compression on its date d = n * P + R evicts after the length d was
held, so the entries held rise by one a token and fall after each date: a saw. All counts are per layer, without the
prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_rpc.policy.budget import Budget


@dataclass(frozen=True)
class Saw:
    """KV entries held by one request."""

    mean: float  #: over all lengths from 1 to what it generated
    peak: float
    end: float


def uncompressed(generated: float) -> Saw:
    """A request of which nothing is evicted."""
    return Saw((generated + 1) / 2, generated, generated)


def play(budget: Budget, generated: int, compressions: int) -> Saw:
    """A request that generates `generated` entries and is compressed on its first `compressions` dates.

    Raises ValueError if it is too short for them.
    """
    length = held = total = peak = event = 0
    for _ in range(compressions):
        date = budget.next_due(event)
        if date > generated:
            raise ValueError(f"no compression is due at {date} of {generated} entries")
        event = budget.compressions_due(date)
        before = held + date - length
        total += _sum(held, before)
        peak = max(peak, before)
        length, held = date, budget.window + min(budget.kept(event), before - budget.window)
    end = held + generated - length
    total += _sum(held, end)
    return Saw(total / max(1, generated), max(peak, end), end)


def of_receipt(receipt: Mapping[str, Any]) -> Saw | None:
    """What the request of this receipt held; None if its receipt does not tell.

    It does not of late compressions, or of a policy that keeps no dates. Early ones are left out: with them the request
    held as much as this at most.
    """
    budget = budget_of(receipt)
    if receipt["late"]:
        return None
    try:
        saw = play(budget, receipt["generated"], receipt["compressions"] - receipt["early"])
    except ValueError:
        return None
    dates_kept = saw.end >= receipt["held"] if receipt["early"] else saw.end == receipt["held"]
    return saw if dates_kept else None


def budget_of(method: Mapping[str, Any]) -> Budget:
    """The budget that a receipt's interval, window, ratio and min_kept stand for."""
    interval, window, least = (int(method.get(name) or 0) for name in ("interval", "window", "min_kept"))
    return Budget(interval, window, int(interval / float(method["ratio"])), least)


def mean_at(budget: Budget, generated: float) -> float:
    """What a request holds in the mean that is compressed on all of its dates; between two lengths in proportion."""
    low = int(generated)
    short, long = (play(budget, g, _evicting(budget, g)).mean for g in (low, low + 1))
    return short + (long - short) * (generated - low)


def _evicting(budget: Budget, generated: int) -> int:
    """How many dates evict anything: not those on which there are no more candidates than the floor."""
    return max(0, budget.compressions_due(generated) - budget.least // budget.interval)


def _sum(after: int, upto: int) -> int:
    """Of after + 1, after + 2, ... upto."""
    return (after + 1 + upto) * (upto - after) // 2
