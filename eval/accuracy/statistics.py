"""What a table of samples says: accuracy with its standard error, and how the samples ended.

pass@1[avg-of-k]  mean over problems of the share of right samples (k a problem)
standard error    of that mean: sqrt(var(shares) / problems), the shares' own noise included; problems are the units
pass@k            share of problems with a right sample, unbiased for k below the number sampled (Chen et al. 2021)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance
from typing import Any


@dataclass(frozen=True)
class Report:
    problems: int
    samples: int
    k: int  #: samples a problem, of those with fewest
    accuracy: float
    error: float  #: standard error of `accuracy`; nan of a single problem
    pass_at_k: float
    no_answer: float  #: share of samples without one, truncated ones included
    truncated: float  #: share that ran into the token limit
    looping: float  #: share whose end repeats itself; see `loops`
    tokens: float  #: generated, mean
    tokens_median: float
    compressed: float | None  #: share with a compression; None if no receipt came
    evicted: float | None  #: KV entries evicted, mean share of those generated
    grader_errors: int = 0  #: samples whose grader failed: counted as wrong
    measure: str = "pass@1"  #: what `accuracy` may be called
    more: tuple[str, ...] = ()  #: lines about this task


def report(rows: Sequence[Mapping[str, Any]]) -> Report:
    """Of rows with `problem`, `correct`, `answer`, `finish`, `tokens`, `looping` and maybe `receipt`. Needs one row."""
    by_problem: dict[str, list[bool]] = {}
    for row in rows:
        by_problem.setdefault(row["problem"], []).append(bool(row["correct"]))
    shares = [fmean(marks) for marks in by_problem.values()]
    k = min(map(len, by_problem.values()))
    receipts = [row["receipt"] for row in rows if row.get("receipt")]
    return Report(
        problems=len(by_problem),
        samples=len(rows),
        k=k,
        accuracy=fmean(shares),
        error=standard_error(shares),
        pass_at_k=fmean(pass_at(k, marks) for marks in by_problem.values()),
        no_answer=fmean(row["answer"] is None for row in rows),
        truncated=fmean(row["finish"] == "length" for row in rows),
        looping=fmean(bool(row["looping"]) for row in rows),
        tokens=fmean(row["tokens"] for row in rows),
        tokens_median=median(row["tokens"] for row in rows),
        compressed=sum(r["compressions"] > 0 for r in receipts) / len(rows) if receipts else None,
        evicted=fmean(r["evicted"] / max(1, r["generated"]) for r in receipts) if receipts else None,
        grader_errors=sum(row.get("grader_error") is not None for row in rows),
    )


def standard_error(values: Sequence[float]) -> float:
    """nan of a single value. Where all are right, or all wrong, their variance is 0, which is not what is known: then
    that of one more of the other kind (Laplace's rule)."""
    if len(values) < 2:
        return math.nan
    if len(set(values)) == 1 and values[0] in (0.0, 1.0):
        chance = 1 / (len(values) + 2)
        return math.sqrt(chance * (1 - chance) / len(values))
    return math.sqrt(variance(values) / len(values))


def pass_at(k: int, marks: Sequence[bool]) -> float:
    """Chance that of k samples, drawn without putting back, one is right."""
    wrong = len(marks) - sum(marks)
    return 1.0 - math.comb(wrong, k) / math.comb(len(marks), k)


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float, int]:
    """Mean difference over the problems both have, its standard error, and how many these are."""
    both = sorted(ours.keys() & theirs.keys())
    differences = [ours[name] - theirs[name] for name in both]
    error = math.sqrt(variance(differences) / len(both)) if len(both) > 1 else math.nan
    return (fmean(differences) if both else math.nan), error, len(both)


def sign_flip(differences: Sequence[int]) -> float:
    """Two-sided p of the exact sign-flip test: the chance of a sum this far from 0, were each difference as likely of
    the other sign.

    One difference a problem, as whole numbers of samples. Of differences of one it is McNemar's exact test.
    """
    sizes = [abs(difference) for difference in differences if difference]
    chances = {0: 1.0}
    for size in sizes:
        after: dict[int, float] = {}
        for total, chance in chances.items():
            for moved in (total - size, total + size):
                after[moved] = after.get(moved, 0.0) + chance / 2
        chances = after
    reached = abs(sum(differences))
    return min(1.0, math.fsum(chance for total, chance in chances.items() if abs(total) >= reached))


def holm(chances: Sequence[float]) -> list[float]:
    """p values of several tests, adjusted so that the chance of any false one stays below the level (Holm 1979)."""
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    adjusted, least = [0.0] * len(chances), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(chances) - rank) * chances[i]))
        adjusted[i] = least
    return adjusted


def loops(tokens: Sequence[Any], longest: int = 64, times: int = 4) -> bool:
    """Whether the end is one piece of up to `longest` tokens (or words), said `times` times or more."""
    for period in range(1, min(longest, len(tokens) // times) + 1):
        tail = tokens[-period * times :]
        if all(tail[i] == tail[i - period] for i in range(period, len(tail))):
            return True
    return False
