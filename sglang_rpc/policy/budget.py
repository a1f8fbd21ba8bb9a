"""Reasoning Path Compression's budget, which every policy here keeps to: how many generated KV entries are held, and
when that changes.

    n = max(0, (g - R) // P)         compressions due when g entries have been generated (paper, section 3.2)
    held after the n-th = max(F, n * T) + R  with T = int(P / c); the official code's `int`, not rounding

F, which the paper does not have, is the least that is kept: 0 by default. While there are no more candidates than that,
nothing is evicted.

A model with sliding windows needs more: a window layer keeps the newest candidates, and what its next token sees must
be among them. With a reach of S entries before its own that takes max(F, T) + R >= S, and of a compression before its
due date as many candidates. Where window layers have a pool of their own, of pages, whole pages are evicted: P - T must
be a multiple of the page, and what is evicted at another time is rounded down to one.

All counts are KV entries of one request's compressible region; nothing here knows of prompts, pages or slots.
Because every count is known on the host, no scheduling decision ever waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count

from sglang_rpc.config import RequestOptions, RPCConfig


@dataclass(frozen=True)
class Budget:
    """What one request may hold. Lengths are logical."""

    interval: int  #: P
    window: int  #: R
    step: int  #: T: entries that each compression adds
    least: int = 0  #: F: candidates that every compression keeps
    reach: int = 0  #: S: entries before its own that a token of a sliding-window layer sees; 0: there is none
    page: int = 1  #: compressions evict multiples of so many entries

    @classmethod
    def of(cls, options: RequestOptions | RPCConfig, reach: int = 0, page: int = 1) -> Budget:
        """What a request with these options may hold, of a model whose sliding windows have this reach."""
        return cls(options.interval, options.window, options.budget_step, options.min_kept, reach, page)

    def compressions_due(self, generated: int) -> int:
        """How many compressions `generated` entries call for: the first at P+R, then one every P."""
        return max(0, (generated - self.window) // self.interval)

    def next_due(self, compressions: int) -> int:
        """The length at which the compression after the `compressions`-th is due: the next that evicts anything."""
        return max(compressions, self.least // self.interval) * self.interval + self.interval + self.window

    def kept(self, compressions: int) -> int:
        """How many candidates (region without its last R entries) survive the `compressions`-th compression, if there
        are that many."""
        return max(self.least, compressions * self.step)

    def in_whole_pages(self, candidates: int, keep: int) -> int:
        """How many of `candidates` survive where `keep` should: as few more as make the evicted ones whole pages."""
        return candidates - (candidates - keep) // self.page * self.page

    def early_kept(self, generated: int, compressions: int, ratio: float) -> int:
        """Candidates that survive a compression before the due date, at `generated` entries and `ratio`: the budget so
        far, and the share 1/c of the candidates that came since. On the due date it is the next budget.

        Sliding windows may ask for more.

        Due dates and their budgets stay what they are: an early compression is a step on the way to the next one.
        """
        so_far = compressions * int(self.interval / ratio)
        since = int((generated - self.window - compressions * self.interval) / ratio)
        return max(self.least, self.reach - self.window, so_far + since)

    def peak(self, generated: int) -> int:
        """The most entries held at once by a request that generates `generated` entries in all.

        Between compressions n and n+1 the region grows from n*T+R to n*T+R+P, so the last full interval decides. What
        remains of a page comes on top.
        """
        done = self.compressions_due(generated)
        if done == 0:
            return generated
        before_last = self._survivors(done - 1) + self.window + self.interval
        after_last = self._survivors(done) + generated - done * self.interval
        return max(before_last, after_last) + self.page - 1

    def _survivors(self, compressions: int) -> int:
        """Candidates after the `compressions`-th date, on which there were an interval more than after the last."""
        return min(self.kept(compressions), compressions * self.interval)


def reach_missed(options: RequestOptions | RPCConfig, reach: int) -> str | None:
    """How much of what sliding windows of this reach see would be evicted, as a part of a sentence, with the interval
    and the least that would do; None if nothing would."""
    needed, kept = reach - options.window, Budget.of(options).kept(1)
    if kept >= needed:
        return None
    settings = [f"interval {options.interval}", f"window {options.window}", f"ratio {options.ratio:g}"]
    if options.min_kept:
        settings.append(f"min_kept {options.min_kept}")
    return (
        f"{reach} entries before a token, of which only the newest {kept + options.window} stay with "
        f"{', '.join(settings[:-1])} and {settings[-1]} (interval {shortest_interval(needed, options.ratio)} or "
        f"min_kept {needed} would do)"
    )


def pages_missed(options: RequestOptions | RPCConfig, page: int) -> str | None:
    """How what a compression evicts differs from whole pages, as a part of a sentence, with the interval that would do;
    None if it does not."""
    evicted = options.interval - options.budget_step
    if evicted % page == 0:
        return None
    # One step further either T grows or what is evicted does, so that one of the next intervals has whole pages.
    better = next(p for p in count(options.interval) if (p - int(p / options.ratio)) % page == 0)
    return (
        f"pages of {page} slots, where with interval {options.interval} and ratio {options.ratio:g} a compression "
        f"evicts {evicted} entries (interval {better} would do)"
    )


def shortest_interval(candidates: int, ratio: float) -> int:
    """The shortest interval P of which int(P / ratio) >= `candidates`."""
    interval = math.ceil(candidates * ratio)
    while int(interval / ratio) < candidates:  # the product was rounded down
        interval += 1
    while int((interval - 1) / ratio) >= candidates:  # or up
        interval -= 1
    return interval
