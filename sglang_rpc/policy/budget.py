"""Reasoning Path Compression's budget, which every policy here keeps to: how many generated KV entries are held, and
when that changes.

    n = max(0, (g - R) // P)         compressions due when g entries have been generated (paper, section 3.2)
    held after the n-th = max(F, n * T) + R  with T = int(P / c); the official code's `int`, not rounding

F, which the paper does not have, is the least that is kept: 0 by default. While there are no more candidates than that,
nothing is evicted.

All counts are KV entries of one request's compressible region; nothing here knows of prompts, pages or slots.
Because every count is known on the host, no scheduling decision ever waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_rpc.config import RequestOptions


@dataclass(frozen=True)
class Budget:
    """What one request may hold. Lengths are logical."""

    interval: int  #: P
    window: int  #: R
    step: int  #: T: entries that each compression adds
    least: int = 0  #: F: candidates that every compression keeps

    @classmethod
    def of(cls, options: RequestOptions) -> Budget:
        """What a request with these options may hold."""
        return cls(options.interval, options.window, options.budget_step, options.min_kept)

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

    def early_kept(self, generated: int, compressions: int, ratio: float) -> int:
        """Candidates that survive a compression before the due date, at `generated` entries and `ratio`: the budget so
        far, and the share 1/c of the candidates that came since. On the due date it is the next budget.

        Due dates and their budgets stay what they are: an early compression is a step on the way to the next one.
        """
        so_far = compressions * int(self.interval / ratio)
        since = int((generated - self.window - compressions * self.interval) / ratio)
        return max(self.least, so_far + since)

    def peak(self, generated: int) -> int:
        """The most entries held at once by a request that generates `generated` entries in all.

        Between compressions n and n+1 the region grows from n*T+R to n*T+R+P, so the last full interval decides.
        """
        done = self.compressions_due(generated)
        if done == 0:
            return generated
        before_last = self._survivors(done - 1) + self.window + self.interval
        after_last = self._survivors(done) + generated - done * self.interval
        return max(before_last, after_last)

    def _survivors(self, compressions: int) -> int:
        """Candidates after the `compressions`-th date, on which there were an interval more than after the last."""
        return min(self.kept(compressions), compressions * self.interval)
