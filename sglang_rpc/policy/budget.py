"""Reasoning Path Compression's budget, which every policy here keeps to: how many generated KV entries are held, and
when that changes.

    n = max(0, (g - R) // P)         compressions due when g entries have been generated (paper, section 3.2)
    held after the n-th = n * T + R  with T = int(P / c); the official code's `int`, not rounding

All counts are KV entries of one request's compressible region; nothing here knows of prompts, pages or slots.
Because every count is known on the host, no scheduling decision ever waits for the device.
"""

from __future__ import annotations


def compressions_due(generated: int, interval: int, window: int) -> int:
    """How many compressions `generated` (logical) entries call for: the first at P+R, then one every P."""
    return max(0, (generated - window) // interval)


def next_due(compressions: int, interval: int, window: int) -> int:
    """The logical length at which the compression after the `compressions`-th is due."""
    return (compressions + 1) * interval + window


def kept_candidates(compressions: int, budget_step: int) -> int:
    """How many candidates (region without its last R entries) survive the `compressions`-th compression."""
    return compressions * budget_step


def early_kept(generated: int, compressions: int, interval: int, window: int, ratio: float) -> int:
    """Candidates that survive a compression before the due date, at `generated` entries: the budget so far, and the
    share 1/c of the candidates that came since. On the due date it is the next budget.

    Due dates and their budgets stay what they are: an early compression is a step on the way to the next one.
    """
    return compressions * int(interval / ratio) + int((generated - window - compressions * interval) / ratio)


def peak_held(generated: int, interval: int, window: int, budget_step: int) -> int:
    """The most entries held at once by a request that generates `generated` entries in all.

    Between compressions n and n+1 the region grows from n*T+R to n*T+R+P, so the last full interval decides.
    """
    done = compressions_due(generated, interval, window)
    if done == 0:
        return generated
    before_last = (done - 1) * budget_step + window + interval
    after_last = done * budget_step + generated - done * interval
    return max(before_last, after_last)
