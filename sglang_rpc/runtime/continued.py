"""A request that goes on with the region of an earlier one: its budget and its due dates, where that one left them.

    text       prompt | generated | given | generated | given        by the earlier requests, and by this one's prompt
    shared     prompt | what is left of it, as it lies in the tree, in the order of the text
    own copy   prompt | all that was given | what is left of all that was generated, own tokens last

The shared row is read until the first compression. Then the request gets a copy of its own in the last line's order:
what was given is never scored, and what was generated is one region. Attention does not depend on the order of
entries, and positions are in the keys. Ids and counts in, counts out; no sglang.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeAlias

from sglang_rpc.runtime.clock import Clock

#: Half-open ranges, ascending and disjoint.
Ranges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ParkedQueries:
    """The newest queries of a request that has ended, as long as nobody else needs their query slot."""

    ticket: int  #: the ring's name of them
    since: int  #: logical positions `[since, upto)` of the region are held
    upto: int


@dataclass(frozen=True)
class Thought:
    """What a request leaves for those that go on with its region. Positions `begin` and `given` are tokens of the text;
    the others are logical entries of the region."""

    begin: int  #: where the region begins: the end of the first request's prompt
    given: Ranges  #: of the text after `begin`: what was not generated
    start: int  #: first entry that may be compressed
    events: int  #: due dates that have passed
    evicted: int
    known: array[int]  #: ids generated after the text that the alias is found by
    queries: ParkedQueries | None = None


@dataclass(frozen=True)
class Continued:
    """How a request goes on with a `Thought`. Lengths are KV entries."""

    thought: Thought
    first: int  #: entries before the region, as the first request had them
    offset: int  #: tokens of these that have no entry of their own
    inherited: int  #: tokens generated before this request: its own follow them in the region
    given: Ranges  #: as the thought's, with what this request's prompt adds
    protected: Ranges  #: row positions of what was given, in the shared row
    number: int | None = None  #: of the compressed state in the request's own copy, once it has one

    @property
    def front(self) -> int:
        """Entries before the region in the request's own copy."""
        return self.first + _size(self.given)

    @property
    def copied(self) -> bool:
        """Whether the request has a copy of its own."""
        return self.number is not None

    @property
    def whole(self) -> bool:
        """Whether its prompt adds nothing: it is one long request."""
        return self.given == self.thought.given

    def clock(self) -> Clock:
        """The region's dates, as the request begins."""
        return Clock(events=self.thought.events, evicted=self.thought.evicted)

    def order(self, begin: int, end: int) -> Ranges:
        """The shared row's positions `[begin, end)` in the order of an own copy; `begin` is at most `first`."""
        rest, at = [], self.first
        for given in self.protected:
            rest.append((at, given[0]))
            at = given[1]
        ranges = ((begin, self.first), *self.protected, *rest, (at, end))
        return tuple(each for each in ranges if each[0] < each[1])


def go_on(
    thought: Thought, tokens: int, spans: Sequence[tuple[int, int, int]], offset: int, text: array[int]
) -> Continued:
    """Go on with `thought` in a request whose prompt is `text`.

    Args:
        tokens: length of the text that the alias was found by.
        spans: (begin, end, held entries) of what the alias names as compressed, in tokens of the text.
        offset: tokens that have no entry of their own in all of these spans.
    """
    pairs = zip(thought.known, text[tokens : tokens + len(thought.known)], strict=False)
    at = tokens + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    given = thought.given if at == len(text) else (*thought.given, (at, len(text)))
    frozen = sum(end - begin - held for begin, end, held in spans if begin < thought.begin)
    first, inside = thought.begin - frozen, max((end for begin, end, _ in spans if begin >= thought.begin), default=0)
    ahead = _size(tuple(each for each in given if each[0] < inside))
    protected = [(first, first + ahead)] if ahead else []
    protected += [(begin - offset, end - offset) for begin, end in given if begin >= inside]
    return Continued(
        thought,
        first=first,
        offset=frozen,
        inherited=at - thought.begin - _size(thought.given),
        given=given,
        protected=tuple(protected),
    )


def _size(ranges: Ranges) -> int:
    return sum(end - begin for begin, end in ranges)
