"""Texts whose ids are known: prompts, and what was generated after them. The least recently used goes first.

Generated ids are not always what a tokenizer makes of their text. Who sends the text again is given the ids that were
generated, of the longest beginning that a known text shares with it:

    known   prompt | generated                      marks: places where text and ids both end
    asked   prompt | generated, or a part | other text

Texts lie sorted, so that the one which shares most with another is its neighbour there. No sglang: text and ids in,
ids out.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import NamedTuple

#: Bytes of a known text's own objects and its places in the tables, measured; and of each of its marks.
_EACH, _MARK = 700, 120


class Mark(NamedTuple):
    """A place in a known text where a token ends: `chars` of its characters are what `ids` of its ids say."""

    chars: int
    ids: int


@dataclass(frozen=True)
class Known:
    """A text, and the ids that say it."""

    text: str
    ids: array[int]
    marks: tuple[Mark, ...]  #: ascending; the first is where the first generated token begins, the last the end of both
    compressed: bool = False  #: whether compressed KV hangs on these very ids

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, and what it is kept in."""
        return sys.getsizeof(self.text) + sys.getsizeof(self.ids) + _EACH + _MARK * len(self.marks)

    def begins(self, other: Known) -> bool:
        """Whether `other` goes on from the whole of this one, and knows where it ended."""
        end = self.marks[-1]
        return end in other.marks and other.ids[: end.ids] == self.ids and other.text.startswith(self.text)


@dataclass(frozen=True)
class Prompt:
    """A prompt that was text, and its ids."""

    namespace: Hashable  #: of the texts that it may begin with, and will be one of
    text: str
    ids: array[int]
    marks: tuple[Mark, ...]  #: as a known text's; the last is the end of both
    reused: int  #: of the ids, those that a known text gave
    compressed: bool = False  #: whether compressed KV hangs on these ids, or on those of its output


class KnownTexts:
    """What one process that tokenizes knows."""

    def __init__(self, limit: float):
        """`limit`: bytes that all of them may take."""
        self._limit = limit
        self._known: OrderedDict[tuple[Hashable, str], Known] = OrderedDict()
        self._sorted: dict[Hashable, list[str]] = {}  # texts of each namespace
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, namespace: Hashable, known: Known) -> None:
        """Remember a text for requests of `namespace`. Replaces an older one that is equal, or that it goes on from."""
        if _size(namespace, known) > self._limit:
            return
        texts = self._sorted.setdefault(namespace, [])
        at = bisect_left(texts, known.text)
        if at < len(texts) and texts[at] == known.text:
            self._forget(namespace, known.text)
        elif at and self._known[namespace, texts[at - 1]].begins(known):
            self._forget(namespace, texts[at - 1])
        texts = self._sorted.setdefault(namespace, [])
        insort(texts, known.text)
        self._known[namespace, known.text] = known
        self.nbytes += _size(namespace, known)
        while self.nbytes > self._limit:
            self._forget(*next(iter(self._known)))

    def find(self, namespace: Hashable, text: str) -> tuple[Known, int] | None:
        """The known text that shares most of its beginning with `text`, and how many characters that is."""
        texts = self._sorted.get(namespace, [])
        at = bisect_left(texts, text)
        shared = [(common(near, text), near) for near in texts[max(0, at - 1) : at + 1]]
        if not shared:
            return None
        chars, near = max(shared)
        self._known.move_to_end((namespace, near))
        return self._known[namespace, near], chars

    def _forget(self, namespace: Hashable, text: str) -> None:
        self.nbytes -= _size(namespace, self._known.pop((namespace, text)))
        texts = self._sorted[namespace]
        del texts[bisect_left(texts, text)]
        if not texts:
            del self._sorted[namespace]


def _size(namespace: Hashable, known: Known) -> int:
    """Bytes of a text and of the names that keep it apart, which each request brings anew."""
    names = namespace if isinstance(namespace, tuple) else (namespace,)
    return known.nbytes + sum(map(sys.getsizeof, names))


def common(one: str, other: str) -> int:
    """Leading characters that both have."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
