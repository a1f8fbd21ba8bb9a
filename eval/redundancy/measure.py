"""Numbers of texts and of groups of texts. Only windows of one length are measured, since entropy grows with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from eval.redundancy.entropy import distinct_share, entropy, most
from eval.redundancy.texts import Text, Tokens

ORDERS = (1, 2, 3)  #: n, as in the paper


@dataclass(frozen=True)
class Measured:
    """One text's n-grams; of several windows the mean."""

    group: str
    text: str
    n: int
    entropy: float  #: bits
    distinct: float
    most: float  #: bits, if no n-gram came twice
    tokens: int  #: of a window
    windows: int
    length: int  #: tokens of the whole text


@dataclass(frozen=True)
class Group:
    group: str
    n: int
    texts: int
    entropy: float  #: mean over texts
    error: float  #: its standard error; nan of a single text
    distinct: float
    distinct_error: float


def windows(tokens: Tokens, length: int, every: bool) -> list[Tokens]:
    """The first `length` tokens, or every whole stretch of that many; none of a text that is shorter."""
    count = len(tokens) // length if every else min(1, len(tokens) // length)
    return [tokens[first * length : (first + 1) * length] for first in range(count)]


def measure(text: Text, length: int, every: bool) -> list[Measured]:
    """A row an n; no row of a text that is shorter than `length`."""
    cut = windows(text.tokens, length, every)
    if not cut:
        return []
    return [
        Measured(
            text.group,
            text.name,
            n,
            fmean(entropy(window, n) for window in cut),
            fmean(distinct_share(window, n) for window in cut),
            most(length, n),
            length,
            len(cut),
            len(text.tokens),
        )
        for n in ORDERS
    ]


def standard_error(values: Sequence[float]) -> float:
    """Of their mean; nan of a single value."""
    return math.sqrt(variance(values) / len(values)) if len(values) > 1 else math.nan


def groups(rows: Sequence[Measured]) -> list[Group]:
    """Mean over a group's texts, in the order in which they come; texts are the units of the error."""
    found = []
    for group, n in dict.fromkeys((row.group, row.n) for row in rows):
        mine = [row for row in rows if (row.group, row.n) == (group, n)]
        entropies, shares = [row.entropy for row in mine], [row.distinct for row in mine]
        found.append(
            Group(
                *(group, n, len(mine)),
                *(fmean(entropies), standard_error(entropies), fmean(shares), standard_error(shares)),
            )
        )
    return found
