"""Where a request's thoughts begin and end, read from its tokens.

A think segment opens in the prompt (a template that ends in `<think>`) or when the model emits the start marker, and
closes at the end marker. Only entries after the start and before the end are ever compressed. A request has one
segment: what it writes after the end is its answer.

A marker that the tokenizer knows as one token is matched by id. Any other is matched in the decoded text, because
how its letters fall into tokens depends on the letters around them.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Found:
    """Where a marker stands: how many tokens reach to its end, and what the last of them spells after it."""

    after: int
    rest: str = ""


@dataclass(frozen=True)
class TokenMarker:
    """A marker that is one token."""

    token_id: int
    reach: ClassVar[int] = 0  #: tokens already read that an occurrence found later may begin in

    def find(self, ids: Sequence[int], begin: int, before: str = "") -> Found | None:
        """The first occurrence that starts at or after token `begin`; None if there is none."""
        try:
            return Found(ids.index(self.token_id, begin) + 1)
        except ValueError:
            return None

    def find_last(self, ids: Sequence[int]) -> Found | None:
        """The last occurrence; None if there is none."""
        found = self.find(ids[::-1], 0)  # in C, of prompts that may be 100 K tokens long
        return None if found is None else Found(len(ids) - found.after + 1)


@dataclass(frozen=True)
class TextMarker:
    """A marker spelled by several tokens, or by pieces of them."""

    text: str
    decode: Callable[[list[int]], str]  #: a tokenizer's: the text of these ids

    @property
    def reach(self) -> int:
        """Tokens already read that an occurrence may begin in."""
        return len(self.text.encode())  # a token spells at least one byte

    def find(self, ids: Sequence[int], begin: int, before: str = "") -> Found | None:
        """As `TokenMarker.find`. `before`: text of the token before `begin` that may belong to the marker."""
        tail = list(ids[begin:])

        def text(count: int) -> str:
            return before + self.decode(tail[:count])

        if self.text not in text(len(tail)):
            return None
        count = bisect_left(range(len(tail)), True, key=lambda k: self.text in text(k))
        return Found(begin + count, text(count).split(self.text, 1)[1])

    def find_last(self, ids: Sequence[int]) -> Found | None:
        """As `TokenMarker.find_last`."""
        # Prompts are long and the marker, if there is one, is mostly near the end: decode growing tails.
        size = 64
        while True:
            tail = list(ids[-size:])
            at = self.decode(tail).rfind(self.text)
            if at >= 0:
                end = at + len(self.text)
                count = bisect_left(range(len(tail)), end, key=lambda k: len(self.decode(tail[:k])))
                return Found(len(ids) - len(tail) + count)
            if size >= len(ids):
                return None
            size *= 4


Marker = TokenMarker | TextMarker


@dataclass(frozen=True)
class ThinkMarkers:
    """A model's think markers; `start` may be unknown, then every request counts as thinking from its first token."""

    start: Marker | None
    end: Marker

    def open_in_prompt(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt leaves a think segment open: its last start stands after its last end."""
        if self.start is None:
            return True
        start, end = self.start.find_last(prompt), self.end.find_last(prompt)
        return start is not None and (end is None or start.after > end.after)


class SegmentTracker:
    """Follows one request's tokens.

    `start` is the position, in generated tokens, of the first thought (None: none opened yet); `end` that of the first
    token after the end marker (None: the segment has not ended). Both only ever move forward, and depend on nothing
    but the tokens shown.
    """

    def __init__(self, markers: ThinkMarkers, prompt: Sequence[int]):
        self._markers = markers
        self._seen = 0
        self._before = ""  # what the start marker's last token spells after it: the end marker may begin there
        self.start: int | None = 0 if markers.open_in_prompt(prompt) else None
        self.end: int | None = None

    @property
    def closed(self) -> bool:
        """Whether the segment has ended."""
        return self.end is not None

    def advance(self, output_ids: Sequence[int], upto: int) -> None:
        """Read `output_ids[:upto]`; positions read before are not read again."""
        if self.closed or upto <= self._seen:
            return
        shown = output_ids[:upto]
        if self.start is None:
            marker = self._markers.start
            assert marker is not None
            found = marker.find(shown, max(0, self._seen - marker.reach))
            if found is not None:
                self.start, self._before = found.after, found.rest
        if self.start is not None:
            begin = self._seen - self._markers.end.reach
            before = self._before if begin <= self.start else ""
            ended = self._markers.end.find(shown, max(self.start, begin), before)
            self.end = None if ended is None else ended.after
        self._seen = upto
