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
        self._begin = -1  # of the thought that is being written
        self._after = -1  # of the last gists, where a `resume` may stand
        self._seen = 0
        self._matched: tuple[int, ...] = ()  # the longest beginning of the gists that the tokens seen end in
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
        return self._seen + len(self._gists.ids) - len(self._matched)

    def _read(self, position: int, token: int) -> None:
        ids = self._gists.ids
        if position == self._after and token == self._gists.resume:
            self._begin = position + 1
        self._matched = (*self._matched, token)
        while self._matched != ids[: len(self._matched)]:
            self._matched = self._matched[1:]
        if self._matched == ids:
            complete = position + 1
            if self._begin < complete - len(ids):
                self.done.append(Thought(self._begin, complete - len(ids), complete))
            self._begin = self._after = complete
            self._matched = ()
