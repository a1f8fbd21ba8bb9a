"""Where a request's thoughts begin and end, read from its tokens.

A think segment opens in the prompt (a template that ends in `<think>`) or when the model emits the start marker, and
closes at the end marker. Only entries after the start and before the end are ever compressed. A request has one
segment: what it writes after the end is its answer.

A marker that the tokenizer knows as one token is matched by id. Any other is matched in the decoded text, because
how its letters fall into tokens depends on the letters around them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Tokenizer(Protocol):
    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class TokenMarker:
    """A marker that is one token."""

    token_id: int

    def find(self, ids: Sequence[int], begin: int) -> int | None:
        """Position just behind the first occurrence that starts at or after `begin`; None if there is none."""
        try:
            return ids.index(self.token_id, begin) + 1
        except ValueError:
            return None

    def find_last(self, ids: Sequence[int]) -> int:
        """Position just behind the last occurrence; 0 if there is none."""
        behind = 0
        # Forward in C beats backward in Python, and prompts may be 100 K tokens long.
        while (found := self.find(ids, behind)) is not None:
            behind = found
        return behind

    #: tokens before `begin` that an occurrence found later may reach back into
    overlap: int = 0


@dataclass(frozen=True)
class TextMarker:
    """A marker spelled by several tokens."""

    text: str
    tokenizer: Tokenizer

    @property
    def overlap(self) -> int:
        return len(self.text)  # a token spells at least one character, or a piece of one

    def find(self, ids: Sequence[int], begin: int) -> int | None:
        """As `TokenMarker.find`: the shortest prefix whose text holds the marker."""
        tail = list(ids[begin:])
        if self.text not in self.tokenizer.decode(tail):
            return None
        low, high = 1, len(tail)
        while low < high:
            middle = (low + high) // 2
            if self.text in self.tokenizer.decode(tail[:middle]):
                high = middle
            else:
                low = middle + 1
        return begin + low

    def find_last(self, ids: Sequence[int]) -> int:
        """As `TokenMarker.find_last`, in characters of the decoded text, which order two markers just as well."""
        return self.tokenizer.decode(list(ids)).rfind(self.text) + 1


Marker = TokenMarker | TextMarker


@dataclass(frozen=True)
class ThinkMarkers:
    """A model's think markers; `start` may be unknown, then every request counts as thinking from its first token."""

    start: Marker | None
    end: Marker

    def open_in_prompt(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt leaves a think segment open: its last start stands behind its last end."""
        if self.start is None:
            return True
        return self.start.find_last(prompt) > self.end.find_last(prompt)


class ThinkGate:
    """Follows one request's tokens.

    `start` is the position, in generated tokens, of the first thought (None: none opened yet); `closed` says that the
    segment has ended. Both only ever move forward, and depend on nothing but the tokens shown.
    """

    def __init__(self, markers: ThinkMarkers, prompt: Sequence[int]):
        self._markers = markers
        self._seen = 0
        self.closed = False
        self.start: int | None = 0 if markers.open_in_prompt(prompt) else None

    def advance(self, output_ids: Sequence[int], upto: int) -> None:
        """Read `output_ids[:upto]`; positions read before are not read again."""
        if self.closed or upto <= self._seen:
            return
        shown = output_ids[:upto]
        if self.start is None:
            assert self._markers.start is not None
            self.start = self._markers.start.find(shown, max(0, self._seen - self._markers.start.overlap))
            if self.start is not None:
                self._seen = self.start
        if self.start is not None:
            begin = max(self.start, self._seen - self._markers.end.overlap)
            self.closed = self._markers.end.find(shown, begin) is not None
        self._seen = upto
