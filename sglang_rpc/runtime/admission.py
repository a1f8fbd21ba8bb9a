"""What a request will hold, and so whether it fits: the arithmetic of admission and of length limits.

A compressed request's KV rises by P, falls, and rises again a little higher. SGLang reserves what it would hold at full
length; here every request is reserved what it will hold at most, and requests whose length is known beforehand are
even added up over time, since they do not all stand at their peak at once. No sglang: counts in, counts out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_rpc.config import RequestOptions
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy import budget
from sglang_rpc.runtime.pages import ceil_align
from sglang_rpc.types import NEVER

#: Buckets that the time ahead is cut into; each counts as high as its highest moment.
BUCKETS = 64


@dataclass(frozen=True)
class Plan:
    """One request's generated region, now and until it ends. Counts are KV entries."""

    held: int  #: physical, now
    generated: int  #: logical, now
    remaining: int  #: tokens still to come, or as many of them as shall be reserved for
    ends: bool  #: whether it is known to end after `remaining`; if not, it stays at its highest
    compresses_at: int = NEVER  #: logical length at which it is compressed next
    start: int = 0  #: first logical entry of the compressible region
    interval: int = 1
    window: int = 0
    budget_step: int = 1
    prompt: int = 0  #: entries before the generated region, in the same pages

    @property
    def counts(self) -> tuple[int, ...]:
        """Its numbers, in the order in which `highest_held` unpacks them."""
        return (
            *(self.held, self.generated, self.remaining, self.compresses_at),
            *(self.start, self.interval, self.window, self.budget_step),
        )


class Forecast:
    """How much more than now is held, bucket by bucket of the steps ahead, by all `plans` together.

    Every running request advances by one token a step. The last bucket has no end, so that what is added later and
    outlasts the first plans is counted there.
    """

    def __init__(self, plans: Sequence[Plan], page: int):
        """
        Args:
            page: entries are counted in pages of this many slots.
        """
        horizon = max((plan.remaining for plan in plans if plan.ends), default=0)
        inner = np.linspace(0, horizon, BUCKETS).astype(np.int64)
        self._begin = inner
        self._end = np.append(inner[1:], NEVER)
        self._page = page
        self._total = self._growth(plans).sum(axis=0)

    @property
    def peak(self) -> int:
        """Slots that must be free now, so that all of it fits at every moment."""
        return max(0, int(self._total.max()))

    def peak_with(self, plan: Plan) -> int:
        """The peak if `plan` is added; what it holds now is not part of it."""
        return max(0, int((self._total + self._growth([plan])[0]).max()))

    def add(self, plan: Plan) -> None:
        """Add `plan` to what is forecast."""
        self._total = self._total + self._growth([plan])[0]

    def _growth(self, plans: Sequence[Plan]) -> np.ndarray:
        """Slots above what is held now: int64 [plans, buckets]; negative where a plan holds less, or has ended."""
        if not plans:
            return np.zeros((1, BUCKETS), dtype=np.int64)
        prompt = np.array([[plan.prompt] for plan in plans])
        now = prompt + np.array([[plan.held] for plan in plans])
        then = prompt + highest_held(plans, self._begin, self._end)
        growth: np.ndarray = ceil_align(then, self._page) - ceil_align(now, self._page)
        return growth


def highest_held(plans: Sequence[Plan], begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The most that each plan holds at any moment of each bucket [begin, end] of steps from now.

    An upper bound: a compression that comes later than its due date takes what came since with it. int64 [plans,
    buckets].
    """
    columns = np.array([plan.counts for plan in plans], dtype=np.int64).T[:, :, None]
    held, now, remaining, compresses_at, start, interval, window, step = columns
    compresses_at = np.maximum(compresses_at, now)
    first = now + np.minimum(begin[None, :], remaining)
    last = now + np.minimum(end[None, :], remaining)

    until_compressed = np.where(first <= compresses_at, held + np.minimum(last, compresses_at) - now, 0)
    # After it: at the bucket's end, and just before the last due date inside the bucket. Peaks rise with time.
    region = last - start
    dates = np.maximum(-(-(region - window) // interval) - 1, 0)
    at_end = start + dates * step + region - dates * interval
    date = dates * interval + window
    inside = (dates >= 1) & (date >= np.maximum(first, compresses_at) - start)
    at_date = np.where(inside, start + (dates - 1) * step + window + interval, 0)
    compressed = np.where(last > compresses_at, np.maximum(at_end, at_date), 0)

    highest = np.maximum(until_compressed, compressed)
    ends = np.array([[plan.ends] for plan in plans])
    gone = ends & (begin[None, :] >= remaining)
    beyond = ~ends & (end[None, :] > remaining)
    return np.where(gone, 0, np.where(beyond, highest.max(axis=1, keepdims=True), highest))


def longest(want: int, room: int, options: RequestOptions) -> int:
    """The largest n <= `want` such that n generated tokens never hold more than `room` entries."""
    return largest(want, lambda n: budget.peak_held(n, options.interval, options.window, options.budget_step) <= room)


def largest(want: int, fits: Callable[[int], bool]) -> int:
    """The largest n <= `want` that fits; 0 if none does. What is held at most never falls with n."""
    if fits(want):
        return want
    low, high = 0, want
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def refuse_unfit(want: int, prompt: int, room: int, pool: int, options: RequestOptions) -> None:
    """Raises ConfigError, with the arithmetic, if `want` tokens cannot be generated in `room` entries.

    Args:
        prompt: tokens of the prompt.
        room: entries that the pool, of `pool` slots, has for what is generated after this prompt.
    """
    fits = longest(want, room, options)
    if fits >= want:
        return
    peak = budget.peak_held(want, options.interval, options.window, options.budget_step)
    raise ConfigError(
        f"{want} new tokens do not fit: with interval {options.interval}, window {options.window} and ratio "
        f"{options.ratio:g} they hold up to {peak} KV entries, and beside this prompt of {prompt} tokens the pool of "
        f"{pool} slots has room for {max(room, 0)}; ask for at most {fits} new tokens, a higher ratio or a shorter "
        "interval, or start the server with more memory",
        "request.max_new_tokens",
    )
