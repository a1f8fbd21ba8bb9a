"""LightThinker (Zhang et al. 2025, arXiv 2502.15589): models trained to sum a thought up in gist tokens, and never to
look at it again.

    ... thought [g1] .. [gm]           from the moment the last gist's entry is there, the thought is evicted:
    ...         [g1] .. [gm] [r] next  what follows attends to prompt, gists and itself

No scores: what is evicted, and when, stands in the token stream. All layers and heads evict the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NAME = "lightthinker"


@dataclass(frozen=True)
class Gists:
    """The model's gist tokens, by id: always all of them, in this order. `resume`: the token that may follow them, and
    is kept with them."""

    ids: tuple[int, ...]
    resume: int | None = None


@dataclass(frozen=True)
class Thought:
    """Generated tokens `[begin, end)`; its gists stand at `[end, complete)`."""

    begin: int
    end: int
    complete: int


class Thoughts:
    """Follows one request's tokens. `done` holds the thoughts that have their gists, oldest first, none of them empty.

    It only ever moves forward, and depends on nothing but the tokens shown: the row counts how many of
    `done` it has lost.
    """

    def __init__(self, gists: Gists):
        self._gists = gists
        self._fallback = _fallback(gists.ids)
        self._begin = -1  # of the thought that is being written
        self._after = -1  # of the last gists, where a `resume` may stand
        self._seen = 0
        self._matched = 0  # gists that the tokens seen end in
        self.done: list[Thought] = []

    def advance(self, output_ids: Sequence[int], upto: int, start: int = 0) -> None:
        """Read `output_ids[:upto]`; positions read before are not read again. The first thought begins at `start`."""
        if self._begin < 0:
            self._begin = self._seen = start
        for position in range(self._seen, upto):
            self._read(position, output_ids[position])
        self._seen = max(self._seen, upto)

    @property
    def next_check(self) -> int:
        """The fewest generated tokens at which one more thought can have its gists."""
        return self._seen + len(self._gists.ids) - self._matched

    def _read(self, position: int, token: int) -> None:
        ids = self._gists.ids
        if position == self._after and token == self._gists.resume:
            self._begin = position + 1
        while self._matched and ids[self._matched] != token:
            self._matched = self._fallback[self._matched - 1]
        self._matched += ids[self._matched] == token
        if self._matched == len(ids):
            complete = position + 1
            if self._begin < complete - len(ids):
                self.done.append(Thought(self._begin, complete - len(ids), complete))
            self._begin = self._after = complete
            self._matched = 0


def _fallback(ids: Sequence[int]) -> list[int]:
    """Of each beginning of `ids`, the longest shorter beginning that it ends in (Knuth, Morris, Pratt): 1 1 2 is found
    in 1 1 1 2."""
    table = [0] * len(ids)
    for last in range(1, len(ids)):
        length = table[last - 1]
        while length and ids[length] != ids[last]:
            length = table[length - 1]
        table[last] = length + (ids[length] == ids[last])
    return table
