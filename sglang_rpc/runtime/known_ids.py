"""The ids of a text that begins as a known one: the known ids, then those of the rest.

    known     prompt | generated                              ids | ids
    asked     prompt | a part of it | other text
              known ids, up to a token's end | the tokenizer's

The cut lies where a token of the known text ends, at a place where the tokenizer would part the text, too: what a user
writes by chance as a model did is not torn apart. Only where a compressed text comes back whole, its end is the cut
whatever follows, for its KV is worth it. Characters that a cut leaves over are tokenized with the rest.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

from sglang_rpc.runtime.known_texts import Known, Mark

#: What decoding makes of bytes that are no character, or not yet.
NO_CHARACTER = "\ufffd"
#: Ids before others that are decoded with them, for tokenizers to which the first id of a text is special.
_CONTEXT = 6
#: Ids that a character may take, at most.
_CHARACTER = 4
#: Places before the first other character that are tried as a cut.
_TRIED = 16
#: Characters on each side of a cut that decide whether the tokenizer parts a text there. Words are shorter.
_REACH = 64


class Codec(Protocol):
    """A tokenizer, without the special tokens that it puts around a text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with special tokens written out."""


def ids_of(text: str, known: Known, shared: int, codec: Codec) -> tuple[array[int], tuple[Mark, ...]] | None:
    """Ids of `text`, whose first `shared` characters are those of `known`, and the marks that both have.

    None if no generated id of `known` would be taken over.
    """
    marks = [mark for mark in known.marks if mark.chars <= shared]
    if not marks:
        return None
    whole = marks[-1].chars == shared
    if len(marks) > 1 and whole and not known.compressed:
        last = marks.pop()
    elif not whole:
        last = last_within(known, marks[-1], known.marks[len(marks)], shared, codec)
    else:
        last = marks[-1]
    mark = _parted(text, known, last, marks[-1], codec)
    if mark is not None:
        marks.append(mark)
    if len(marks) == 1:
        return None
    cut = marks[-1]
    return known.ids[: cut.ids] + array("q", _rest(text, cut, codec)), tuple(marks)


def last_within(known: Known, begin: Mark, until: Mark, chars: int, codec: Codec) -> Mark:
    """The last place from `begin` to `until` where a token of `known` ends, at most `chars` from its beginning."""
    at, high = begin, until.ids
    while at.ids < high:
        middle = (at.ids + high + 1) // 2
        # Inside of a character, its end decides.
        for end in range(middle, min(middle + _CHARACTER, high + 1)):
            said = _said(known.ids, at.ids, end, codec)
            if not said.endswith(NO_CHARACTER):
                break
        if said and at.chars + len(said) <= chars and known.text.startswith(said, at.chars):
            at = Mark(at.chars + len(said), end)
        elif not said:
            at = Mark(at.chars, end)
        else:
            high = middle - 1
    return at


def _parted(text: str, known: Known, last: Mark, least: Mark, codec: Codec) -> Mark | None:
    """The last place after `least`, up to `last`, where the tokenizer parts `text`."""
    for ids in range(last.ids, max(least.ids, last.ids - _TRIED), -1):
        said = _said(known.ids, ids, last.ids, codec)
        mark = Mark(last.chars - len(said), ids)
        if not text.startswith(said, mark.chars):
            continue  # inside of a character
        before, after = text[max(0, mark.chars - _REACH) : mark.chars], text[mark.chars : mark.chars + _REACH]
        if codec.encode(before + after) == codec.encode(before) + codec.encode(after):
            return mark
    return None


def _rest(text: str, cut: Mark, codec: Codec) -> list[int]:
    """Ids of what follows the cut."""
    rest = text[cut.chars :]
    if not rest:
        return []
    # Some tokenizers begin a text as if with a blank. So it is tokenized with something in front that it does not join.
    for before in (text[max(0, cut.chars - _REACH) : cut.chars], "a", ".", "\n"):
        lead, whole = codec.encode(before), codec.encode(before + rest)
        if whole[: len(lead)] == lead:
            return whole[len(lead) :]
    return codec.encode(rest)


def _said(ids: array[int], begin: int, end: int, codec: Codec) -> str:
    """What `ids[begin:end]` add to the text."""
    context = ids[max(0, begin - _CONTEXT) : begin]
    return codec.decode(context + ids[begin:end])[len(codec.decode(context)) :]


def with_output(
    text: str,
    ids: array[int],
    marks: tuple[Mark, ...],
    output: str,
    output_ids: Sequence[int],
    exact: bool,
    codec: Codec,
    compressed: bool = False,
) -> Known | None:
    """What is known of a request that has ended; None if it generated nothing that shows.

    Args:
        text, ids, marks: of its prompt.
        output: its text, as it was shown.
        output_ids: ids of which no special token is hidden.
        exact: whether these say all of the text and nothing else; if not, their last ones may say more or less.
        compressed: whether compressed KV hangs on the ids.
    """
    end = Mark(len(text + output), len(ids) + len(output_ids))
    known = Known(text + output, ids + array("q", output_ids), (*marks, end), compressed)
    if not exact:
        end = last_within(known, marks[-1], known.marks[-1], len(known.text), codec)
        known = Known(known.text[: end.chars], known.ids[: end.ids], (*marks, end), compressed)
    return known if known.marks[-1].ids > len(ids) else None


def before_hidden(ids: Sequence[int], hidden: frozenset[int]) -> list[int]:
    """The ids up to the first of those that do not show in a text."""
    return list(takewhile(lambda each: each not in hidden, ids))
