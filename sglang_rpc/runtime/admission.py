"""What a request will hold, and so whether it fits: the arithmetic of admission and of length limits.

A compressed request's KV rises by P, falls, and rises again a little higher. SGLang reserves what it would hold at full
length; here every request is reserved what it will hold at most, and requests whose length is known beforehand are
even added up over time, since they do not all stand at their peak at once. Where requests may have to wait for a query
slot, each is planned as the last in the queue. No sglang: counts in, counts out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_rpc.config import RequestOptions
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.budget import Budget
from sglang_rpc.runtime.pages import ceil_align
from sglang_rpc.runtime.slot_waits import longest_wait
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
    min_kept: int = 0  #: candidates that each compression keeps at least
    prompt: int = 0  #: entries before the generated region, in the same pages
    holds_slot: bool = False  #: whether it has a query slot, so that its next compression comes at `compresses_at`
    rest: int = 0  #: candidates that compressions may keep beside, for want of a whole page
    shared: int = 0  #: entries that lie in the tree until it is compressed, which needs a copy of them
    ahead: int = 0  #: slots that a row has after its entries while it decodes, for steps that draft
    ahead_now: int = 0  #: those that it has now

    @property
    def counts(self) -> tuple[int, ...]:
        """Its numbers, in the order in which `highest_held` unpacks them."""
        return (
            *(self.held, self.generated, self.remaining, self.compresses_at),
            *(self.start, self.interval, self.window, self.budget_step, self.min_kept, self.holds_slot, self.rest),
        )


class Forecast:
    """How much more than now is held, bucket by bucket of the steps ahead, by all `plans` together.

    Every running request advances by one token a step. The last bucket has no end, so that what is added later and
    outlasts the first plans is counted there.
    """

    def __init__(self, plans: Sequence[Plan], page: int, slots: int | None = None):
        """
        Args:
            page: entries are counted in pages of this many slots.
            slots: query slots of the server; None where each plan has one when it needs it.
        """
        horizon = max((plan.remaining for plan in plans if plan.ends), default=0)
        inner = np.linspace(0, horizon, BUCKETS).astype(np.int64)
        self._begin = inner
        self._end = np.append(inner[1:], NEVER)
        self._page = page
        self._slots = slots
        self._plans = list(plans)
        self._wait = self._longest_wait(self._plans)
        self._total = self._sum(self._plans, self._wait)

    @property
    def peak(self) -> int:
        """Slots that must be free now, so that all of it fits at every moment."""
        return max(0, int(self._total.max()))

    def peak_with(self, plan: Plan) -> int:
        """The peak if `plan` is added; what it holds now is not part of it."""
        return max(0, int(self._with(plan)[1].max()))

    def add(self, plan: Plan) -> None:
        """Add `plan` to what is forecast."""
        self._wait, self._total = self._with(plan)
        self._plans.append(plan)

    def _with(self, plan: Plan) -> tuple[int, np.ndarray]:
        """How long a compression waits, and the sum, if `plan` is added."""
        plans = [*self._plans, plan]
        wait = self._longest_wait(plans)
        if wait == self._wait:
            return wait, self._total + self._sum([plan], wait)
        return wait, self._sum(plans, wait)  # all wait longer

    def _longest_wait(self, plans: Sequence[Plan]) -> int:
        """Steps that a compression of any of `plans` waits at most for a query slot."""
        if self._slots is None or len(plans) <= self._slots:
            return 0
        due = [plan for plan in plans if plan.compresses_at < NEVER]
        if not due:
            return 0
        shortest = min(plan.interval for plan in due)
        return longest_wait(len(due), self._slots, max(plan.window for plan in due), shortest)

    def _sum(self, plans: Sequence[Plan], wait: int) -> np.ndarray:
        """Slots above what is held now, of all `plans`: int64 [buckets]; negative where they hold less, or have
        ended."""
        if not plans:
            return np.zeros(BUCKETS, dtype=np.int64)
        prompt = np.array([[plan.prompt] for plan in plans])
        now = prompt + np.array([[plan.held - plan.shared + plan.ahead_now] for plan in plans])
        highest = highest_held(plans, self._begin, self._end, wait)
        ahead = np.array([[plan.ahead] for plan in plans])
        then = prompt + highest + np.where(highest > 0, ahead, 0)
        total: np.ndarray = (ceil_align(then, self._page) - ceil_align(now, self._page)).sum(axis=0)
        return total


def growths(plans: Sequence[Plan], page: int) -> list[int]:
    """Slots, in whole pages, that each of `plans` will hold at most beyond what it holds now."""
    if not plans:
        return []
    highest = highest_held(plans, np.zeros(1, dtype=np.int64), np.array([NEVER], dtype=np.int64))[:, 0]
    prompt = np.array([plan.prompt for plan in plans])
    now = prompt + np.array([plan.held for plan in plans])
    more: np.ndarray = ceil_align(prompt + highest, page) - ceil_align(now, page)
    return [max(0, int(slots)) for slots in more]


def highest_held(plans: Sequence[Plan], begin: np.ndarray, end: np.ndarray, wait: int = 0) -> np.ndarray:
    """The most that each plan holds at any moment of each bucket [begin, end] of steps from now.

    An upper bound: a compression that comes later than its due date takes what came since with it. int64 [plans,
    buckets].

    Args:
        wait: steps that a compression comes later at most, for want of a query slot.
    """
    columns = np.array([plan.counts for plan in plans], dtype=np.int64).T[:, :, None]
    held, now, remaining, compresses_at, start, interval, window, step, least, holds_slot, rest = columns
    next_date = np.maximum(compresses_at - start - window, 0) // interval
    compresses_at = np.maximum(compresses_at, now) + np.where(holds_slot, 0, wait)
    window = window + wait
    first = now + np.minimum(begin[None, :], remaining)
    last = now + np.minimum(end[None, :], remaining)

    until_compressed = np.where(first <= compresses_at, held + np.minimum(last, compresses_at) - now, 0)
    # After it: at the bucket's end, and just before the last due date inside the bucket. Peaks rise with time.
    region = last - start
    dates = np.maximum(-(-(region - window) // interval) - 1, 0)
    done = np.maximum(dates, next_date)  # once it has been compressed
    at_end = start + np.minimum(np.maximum(least, done * step), done * interval) + region - done * interval
    date = dates * interval + window
    inside = (dates >= 1) & (date >= np.maximum(first, compresses_at) - start)
    before = np.minimum(np.maximum(least, (dates - 1) * step), (dates - 1) * interval)
    at_date = np.where(inside, start + before + window + interval, 0)
    compressed = np.where(last > compresses_at, np.maximum(at_end, at_date) + rest, 0)

    highest = np.maximum(until_compressed, compressed)
    ends = np.array([[plan.ends] for plan in plans])
    gone = ends & (begin[None, :] >= remaining)
    beyond = ~ends & (end[None, :] > remaining)
    return np.where(gone, 0, np.where(beyond, highest.max(axis=1, keepdims=True), highest))


def longest(want: int, room: int, options: RequestOptions, page: int = 1) -> int:
    """The largest n <= `want` such that n generated tokens never hold more than `room` entries.

    `page`: entries of which compressions evict multiples.
    """
    return largest(want, lambda n: Budget.of(options, page=page).peak(n) <= room)


def largest(want: int, fits: Callable[[int], bool]) -> int:
    """The largest n <= `want` that fits; 0 if none does. What is held at most never falls with n."""
    if fits(want):
        return want
    low, high = 0, want
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def refuse_unfit(want: int, prompt: int, room: int, pool: int, options: RequestOptions, page: int = 1) -> None:
    """Raises ConfigError, with the arithmetic, if `want` tokens cannot be generated in `room` entries.

    Args:
        prompt: tokens of the prompt.
        room: entries that the pool, of `pool` slots, has for what is generated after this prompt.
        page: entries of which compressions evict multiples.
    """
    fits = longest(want, room, options, page)
    if fits >= want:
        return
    peak = Budget.of(options, page=page).peak(want)
    least, less = (f", min_kept {options.min_kept}", ", a lower min_kept") if options.min_kept else ("", "")
    raise ConfigError(
        f"{want} new tokens do not fit: with interval {options.interval}, window {options.window} and ratio "
        f"{options.ratio:g}{least} they hold up to {peak} KV entries, and beside this prompt of {prompt} tokens the "
        f"pool of {pool} slots has room for {max(room, 0)}; ask for at most {fits} new tokens, a higher ratio{less} or "
        "a shorter interval, or start the server with more memory",
        "request.max_new_tokens",
    )
