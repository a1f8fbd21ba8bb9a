"""Aliases: which texts are known compressed, and by which ids the tree knows them."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.runtime import aliases as aliases_module
from sglang_rpc.runtime.aliases import FIRST_VIRTUAL, HEAD, Alias, Aliases, Span

NAMESPACE = ("salt", 64)


def ids(tokens):
    return array("q", tokens)


def alias(length: int, number: int = 1, held: int = 1) -> Alias:
    """Of a text of `length` tokens, the last 8 of which are compressed."""
    return Alias((Span(length - 8, length, number, held),))


@st.composite
def aliased(draw):
    """A text and an alias of it, of one to three spans."""
    spans, at = [], 0
    for number in range(1, draw(st.integers(1, 3)) + 1):
        begin = at + draw(st.integers(0, 9))
        length = draw(st.integers(1, 20))
        spans.append(Span(begin, begin + length, number, draw(st.integers(1, length))))
        at = begin + length
    text = draw(st.lists(st.integers(0, 2**18), min_size=at + 1, max_size=at + 20))
    return ids(text), Alias(tuple(spans))


@given(aliased())
def test_a_key_has_one_id_per_entry_and_the_texts_own_where_nothing_is_compressed(case):
    text, known = case
    key = known.key(text)
    assert len(key) == len(text) - known.offset
    assert len(key) - (len(text) - known.tokens) == known.entries
    real = [i for i in key if i < FIRST_VIRTUAL]
    inside = {i for s in known.spans for i in range(s.begin, s.end)}
    assert real == [token for i, token in enumerate(text) if i not in inside]
    virtual = [i for i in key if i >= FIRST_VIRTUAL]
    assert virtual == [i for s in known.spans for i in s.virtual_ids]
    assert len(set(virtual)) == len(virtual) == known.held
    assert known.compressed == len(inside)


@given(st.lists(st.tuples(st.integers(1, 2**38), st.integers(1, 40)), min_size=2, max_size=5, unique_by=lambda s: s[0]))
def test_no_two_states_share_an_id(states):
    every = [i for number, held in states for i in Span(0, held, number, held).virtual_ids]
    assert len(set(every)) == len(every)
    assert all(FIRST_VIRTUAL <= i < 2**63 for i in every)


def test_sglangs_image_ids_are_below_ours():
    from sglang.srt.managers import schedule_batch

    assert schedule_batch.MM_PAD_SHIFT_VALUE + 2**62 < FIRST_VIRTUAL


#: Texts over two tokens, that share many beginnings.
words = st.lists(st.integers(0, 1), min_size=HEAD, max_size=HEAD + 12).map(lambda t: ids([7] * (HEAD - 2) + t))


@given(st.lists(st.tuples(st.sampled_from("ab"), words), max_size=12), st.sampled_from("ab"), words)
def test_found_are_the_recorded_texts_that_a_text_goes_on_from_the_longest_first(recorded, namespace, text):
    aliases, latest = Aliases(), {}
    for number, (where, known) in enumerate(recorded, 1):
        latest[where, known.tobytes()] = alias(len(known), number)
        aliases.record(where, known, latest[where, known.tobytes()])
    expected = [
        found
        for (where, _), found in latest.items()
        if where == namespace and len(text) > found.tokens and text[: found.tokens].tobytes() == _
    ]
    assert aliases.find(namespace, text) == sorted(expected, key=lambda found: -found.tokens)
    assert len(aliases) == len(latest)


def test_of_equal_texts_the_newest_counts():
    aliases, text = Aliases(), ids(range(50))
    aliases.record(NAMESPACE, text, alias(50, 1))
    aliases.record(NAMESPACE, text, alias(50, 2))
    assert aliases.find(NAMESPACE, ids(range(51))) == [alias(50, 2)]
    assert not aliases.drop(NAMESPACE, text, alias(50, 1))  # which a request still waits with
    assert aliases.drop(NAMESPACE, text, alias(50, 2))
    assert aliases.find(NAMESPACE, ids(range(51))) == []


def test_the_least_recently_used_goes_first():
    aliases, texts = Aliases(limit=3), [ids([i, *range(60)]) for i in range(4)]
    for text in texts[:3]:
        aliases.record(NAMESPACE, text, alias(60))
    assert aliases.find(NAMESPACE, texts[0])
    aliases.record(NAMESPACE, texts[3], alias(60))
    assert [len(aliases.find(NAMESPACE, text)) for text in texts] == [1, 0, 1, 1]
    assert len(aliases) == 3


def test_numbers_go_on_after_a_flush():
    aliases = Aliases()
    before = [aliases.next_number() for _ in range(3)]
    aliases.record(NAMESPACE, ids(range(50)), alias(50))
    aliases.clear()
    assert len(aliases) == 0
    assert aliases.find(NAMESPACE, ids(range(51))) == []
    aliases.record(NAMESPACE, ids(range(50)), alias(50))
    assert aliases.next_number() not in before


@pytest.mark.parametrize("shorter", [1, 20])
def test_a_text_as_short_as_a_buckets_head_is_not_recorded(shorter):
    aliases, text = Aliases(), ids(range(HEAD))
    aliases.record(NAMESPACE, text[:-shorter], alias(HEAD - shorter))
    assert len(aliases) == 0
    aliases.record(NAMESPACE, text, alias(HEAD))
    assert aliases.find(NAMESPACE, ids(range(HEAD + 1)))


def test_as_many_lengths_are_known_of_one_beginning(monkeypatch):
    """Each costs every arrival with this beginning a digest; the least recently used goes first."""
    monkeypatch.setattr(aliases_module, "LENGTHS", 3)
    aliases, text = Aliases(), ids(range(200))
    for end in (50, 60, 70, 80):
        aliases.record("space", text, Alias((Span(40, end, end, 4),)))
    assert [alias.tokens for alias in aliases.find("space", text)] == [80, 70, 60]
    other = ids([7, *range(199)])
    aliases.record("space", other, Alias((Span(40, 90, 1, 4),)))
    assert len(aliases) == 4
