"""What one replica is: its KV pool, how long its steps take, and what it reserves for a request."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from eval.fleet.load import Job
from sglang_rpc.policy.budget import Budget
from sglang_rpc.runtime.admission import Forecast, Plan

#: SGLang reserves no more than this many tokens ahead (CLIP_MAX_NEW_TOKENS).
CLIP = 4096
#: Of what running requests of unknown length may still generate SGLang reserves a share. It begins with this one and
#: falls with each decode step, in so many steps to the least. After a retraction it is estimated, with steps to spare.
SHARE, LEAST_SHARE, DECAY_STEPS, SPARE_STEPS = 0.7, 0.7 * 0.14, 600, 20


def decayed(share: float, steps: int) -> float:
    """The share after so many decode steps."""
    return max(LEAST_SHARE, share - steps * (SHARE - LEAST_SHARE) / DECAY_STEPS)


def share_after_retraction(outputs: Sequence[int], limits: Sequence[int]) -> float:
    """The share, estimated from running requests' tokens so far and their max_new_tokens."""
    return min(1.0, (sum(outputs) + SPARE_STEPS * len(outputs)) / (sum(limits) + 1))


@dataclass(frozen=True)
class Step:
    """How long steps take: linear in what they work on. All values are seconds."""

    fixed: float  #: of each decode step: weights read, scheduling
    request: float = 0.0  #: more for each running request
    entry: float = 0.0  #: more for each KV entry attended to
    prefill: float = 0.0  #: of each prefill step
    token: float = 0.0  #: more for each token prefilled
    compression: float = 0.0  #: the whole batch waits so long for each compression

    def decode(self, steps: int, requests: int, entries: int) -> float:
        """Seconds of `steps` in a row, in each of which every request adds one to the `entries` attended to."""
        attended = steps * entries + requests * steps * (steps + 1) // 2
        return steps * (self.fixed + self.request * requests) + self.entry * attended

    def steps_until(self, seconds: float, steps: int, requests: int, entries: int) -> int:
        """The fewest of `steps` in a row that last at least so many seconds; all of them if none do."""
        return bisect_left(range(steps), seconds, key=lambda n: self.decode(n, requests, entries))


@dataclass(frozen=True)
class Server:
    """One replica's settings. Counts are KV entries; a page is one."""

    pool: int
    step: Step
    budget: Budget | None = None  #: RPC's; None: off, nothing is evicted
    ratio: float = 1.0  #: c, of early compressions
    forecast: bool = (
        False  #: known lengths are added up over time, as RPC does; False: each at its highest, as SGLang does
    )
    max_running: int = 4096

    def plan(self, job: Job, output: int, generated: int, evicted: int, compressions: int, share: float) -> Plan:
        """What admission plans for a request with so many tokens and generated entries.

        Args:
            share: of what it may still generate, if its length is unknown.
        """
        if job.limit is None:
            tokens, ends = (job.output - output, True) if self.forecast else (min(job.output - output, CLIP), False)
        else:
            tokens, ends = int(min(job.limit - output, CLIP) * share), False
        held = generated - evicted
        if self.budget is None:
            return Plan(held, generated, tokens, ends, prompt=job.prompt)
        return Plan(
            *(held, generated, tokens, ends),
            compresses_at=self.budget.next_due(compressions),
            interval=self.budget.interval,
            window=self.budget.window,
            budget_step=self.budget.step,
            min_kept=self.budget.least,
            prompt=job.prompt,
            holds_slot=True,
        )

    def least_pool(self, job: Job) -> int:
        """The smallest pool that lets the job in, alone, and holds it to its end."""
        reserved = Forecast([], page=1).peak_with(self.plan(job, 0, 0, 0, 0, 1.0))
        peak = job.output if self.budget is None else self.budget.peak(job.output)
        return job.prompt + max(reserved, peak) + 2  # one is booked for it, and the last is never given

    def kept(self, generated: int, held: int) -> int:
        """Entries that a compression at its due date, `generated`, leaves of the `held`."""
        assert self.budget is not None
        budget = self.budget
        return min(held, budget.kept(budget.compressions_due(generated)) + budget.window)

    def due(self, generated: int, compressions: int) -> int | None:
        """Decode steps until the next compression; None if there is none."""
        return None if self.budget is None else self.budget.next_due(compressions) - generated

    def early_gain(self, generated: int, held: int, compressions: int) -> int:
        """Entries that a compression before its due date would evict; 0 if less than a window."""
        if self.budget is None:
            return 0
        kept = max(1, self.budget.early_kept(generated, compressions, self.ratio))
        gain = held - self.budget.window - kept
        return gain if gain >= self.budget.window else 0
