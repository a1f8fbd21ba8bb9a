"""How much a sequence of tokens repeats itself.

    H_n        = - sum over distinct n-grams g of p(g) log2 p(g),   p(g) = count(g) / (N - n + 1)
    distinct_n = distinct n-grams / n-grams

of the N - n + 1 n-grams of N tokens, one beginning at each token. H_n is 0 where one n-gram is all there is, and
log2(N - n + 1) where none comes twice: it grows with N, so only sequences of one length can be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """In order, one beginning at each token that has n - 1 behind it; none if there are fewer than n tokens."""
    return list(zip(*(tokens[first:] for first in range(n)), strict=False))


def entropy(tokens: Sequence[Hashable], n: int) -> float:
    """Shannon entropy of the n-grams, bits; nan if there are fewer than n tokens."""
    counts = Counter(ngrams(tokens, n))
    total = counts.total()
    # log2(total / count), not -log2(count / total): the entropy of one n-gram alone is 0, not -0.
    return math.fsum(count / total * math.log2(total / count) for count in counts.values()) if total else math.nan


def most(length: int, n: int) -> float:
    """The entropy of `length` tokens of which no n-gram comes twice; nan if there are fewer than n."""
    return math.log2(length - n + 1) if length >= n else math.nan


def distinct_share(tokens: Sequence[Hashable], n: int) -> float:
    """Of the n-grams, how many are different; nan if there are fewer than n tokens."""
    found = ngrams(tokens, n)
    return len(set(found)) / len(found) if found else math.nan


def repeats(tokens: Sequence[Hashable], n: int) -> list[bool]:
    """Of each token: whether the n-gram that ends in it has been there before. The first n - 1 tokens end none."""
    seen: set[tuple[Hashable, ...]] = set()
    found = [False] * min(n - 1, len(tokens))
    for gram in ngrams(tokens, n):
        found.append(gram in seen)
        seen.add(gram)
    return found


def share(marks: Iterable[bool]) -> float:
    """Of marks, how many are true; nan of none."""
    listed = list(marks)
    return sum(listed) / len(listed) if listed else math.nan
