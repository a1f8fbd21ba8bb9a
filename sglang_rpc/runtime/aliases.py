"""Which ids name a compressed text in the prefix tree, and which texts are known to be held so.

SGLang's tree names an image by hash ids outside the vocabulary, and keeps the real ids beside the request. A compressed
span of text is named the same way: by one *virtual id* for each KV entry that is left of it.

    text     prompt ids | ids of the span, `end - begin` of them | ids that follow
    key      prompt ids | `held` virtual ids                        | ids that follow

A key has one id per KV entry, so that matching, splitting, locks, eviction and pages of the tree hold as they are. The
number of a compressed state, in each of its virtual ids, is never used twice: an alias whose nodes are gone matches
nothing, and no alias can find another's entries. No sglang: ids in, ids out.
"""

from __future__ import annotations

import itertools
from array import array
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from hashlib import blake2b

from sglang_rpc.runtime.continued import Thought

#: The lowest virtual id. SGLang's image ids end at 10**6 + 2**62, a vocabulary long before.
FIRST_VIRTUAL = 3 << 61
#: Bits of an entry's number in a virtual id; those above are the compressed state's.
_ENTRY_BITS = 22
#: Aliases known at once. Each is a few numbers; the KV is the tree's.
LIMIT = 4096
#: Texts with the same first ids share a bucket. A shorter text is not recorded.
HEAD = 32
#: Lengths known at once in a bucket: a new request's text is looked up by each, while the scheduler waits.
LENGTHS = 256


@dataclass(frozen=True)
class Span:
    """Tokens `[begin, end)` of a text, held as the `held` KV entries of compressed state `number`."""

    begin: int
    end: int
    number: int
    held: int

    @property
    def virtual_ids(self) -> array[int]:
        """One id per entry, no other span's."""
        first = FIRST_VIRTUAL | self.number << _ENTRY_BITS
        return array("q", range(first, first + self.held))


@dataclass(frozen=True)
class Alias:
    """How the first `tokens` of a text are held: its compressed spans, in their order."""

    spans: tuple[Span, ...]
    tail: int = 0  #: tokens after the last span that stand in its last page, which the tree gives whole or not at all
    more: int = 0  #: tokens of the text after these, which are their own names
    thought: Thought | None = None  #: for requests that go on with the region

    @property
    def tokens(self) -> int:
        """Tokens of the text, up to the end of the last span's last page, and `more`."""
        return self.named + self.more

    @property
    def named(self) -> int:
        """Tokens up to the end of the last span's last page."""
        return (self.spans[-1].end if self.spans else 0) + self.tail

    @property
    def offset(self) -> int:
        """Tokens that have no KV entry of their own: logical minus physical length."""
        return sum(each.end - each.begin - each.held for each in self.spans)

    @property
    def entries(self) -> int:
        """KV entries of the first `named` tokens, without which none of this holds."""
        return self.named - self.offset

    @property
    def compressed(self) -> int:
        """Tokens of the text that virtual ids stand for."""
        return sum(each.end - each.begin for each in self.spans)

    @property
    def held(self) -> int:
        """KV entries that are left of these."""
        return sum(each.held for each in self.spans)

    def key(self, text: array[int]) -> array[int]:
        """The ids that name the whole of `text`, which begins with this alias's, one per KV entry."""
        ids, after = array("q"), 0
        for each in self.spans:
            ids += text[after : each.begin]
            ids += each.virtual_ids
            after = each.end
        return ids + text[after:]


class Aliases:
    """The aliases of one scheduler; the least recently used goes first. Ranks that make equal calls have equal ones."""

    def __init__(self, limit: int = LIMIT):
        self._limit = limit
        self._numbers = itertools.count(1)
        self._known: OrderedDict[Hashable, tuple[Alias, Hashable]] = OrderedDict()  # with each one's bucket
        self._lengths: dict[Hashable, dict[int, int]] = {}  # of each bucket: length in tokens -> aliases of it

    def __len__(self) -> int:
        return len(self._known)

    def next_number(self) -> int:
        """The number of a new compressed state."""
        return next(self._numbers)

    def record(self, namespace: Hashable, text: array[int], alias: Alias) -> None:
        """Remember that a request of `namespace` whose ids begin as `text` may be named by `alias`.

        Replaces an older alias of the same ids.

        Args:
            namespace: what keeps requests of equal ids apart.
            text: the real ids, `alias.tokens` of them or more.
        """
        length = alias.tokens
        if length < HEAD:
            return
        bucket = namespace, _head(text)
        key = namespace, length, blake2b(memoryview(text)[:length], digest_size=16).digest()
        if key not in self._known:
            lengths = self._lengths.setdefault(bucket, {})
            lengths[length] = lengths.get(length, 0) + 1
        self._known[key] = alias, bucket
        self._known.move_to_end(key)
        if len(self._known) > self._limit:
            self._forget(next(iter(self._known)))
        while len(self._lengths[bucket]) > LENGTHS:
            self._forget(next(each for each, (_, of) in self._known.items() if of == bucket))

    def find(self, namespace: Hashable, text: array[int]) -> list[Alias]:
        """The aliases of texts that `text` begins with and goes on after, the longest first.

        One pass over the text, and a digest for each length known of those that share its first ids.
        """
        lengths = self._lengths.get((namespace, _head(text)))
        if not lengths:
            return []
        view, digest, at, found = memoryview(text), blake2b(digest_size=16), 0, []
        for length in sorted(lengths):
            if length >= len(text):
                break
            digest.update(view[at:length])
            at = length
            key = namespace, length, digest.copy().digest()
            if key in self._known:
                self._known.move_to_end(key)
                found.append(self._known[key][0])
        return found[::-1]

    def drop(self, namespace: Hashable, text: array[int], alias: Alias) -> bool:
        """Forget `alias` of `text`, whose entries are gone; False if it was forgotten or replaced before."""
        key = namespace, alias.tokens, blake2b(memoryview(text)[: alias.tokens], digest_size=16).digest()
        if key not in self._known or self._known[key][0] != alias:
            return False
        self._forget(key)
        return True

    def clear(self) -> None:
        """Forget all. Numbers go on: none is used twice."""
        self._known.clear()
        self._lengths.clear()

    def _forget(self, key: Hashable) -> None:
        alias, bucket = self._known.pop(key)
        lengths = self._lengths[bucket]
        lengths[alias.tokens] -= 1
        if not lengths[alias.tokens]:
            del lengths[alias.tokens]
        if not lengths:
            del self._lengths[bucket]


def _head(text: array[int]) -> bytes:
    return bytes(memoryview(text)[:HEAD])
