"""Which known text shares most with another, what is forgotten, and whose texts they are."""

from __future__ import annotations

import random
import sys
import tracemalloc
from array import array

import pytest

from sglang_rpc.runtime.known_texts import Known, KnownTexts, Mark, common


def known(text, prompt=1, ids=None):
    """One id per character."""
    ids = array("q", map(ord, text) if ids is None else ids)
    return Known(text, ids, (Mark(prompt, prompt), Mark(len(text), len(ids))))


def alone(text, ids=None, namespace=0) -> int:
    """Bytes that are counted where it is the only one."""
    texts = KnownTexts(1e6)
    texts.learn(namespace, known(text, ids=ids))
    return texts.nbytes


@pytest.mark.parametrize("names", [1, 400], ids=["one namespace", "one each"])
def test_what_is_counted_is_what_they_take(names):
    """Objects of small texts take more than the texts."""
    tracemalloc.start()
    texts, before = KnownTexts(1e9), tracemalloc.get_traced_memory()[0]
    for number in range(400):
        texts.learn((None, f"salt {number % names}", None, True), known(f"{number:06} and so on"))
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.5 * taken < texts.nbytes < 2 * taken


def test_the_text_that_shares_most_is_found():
    draw, texts = random.Random(3), KnownTexts(1e6)
    every = {"".join(draw.choices("ab", k=draw.randint(2, 12))) for _ in range(200)}
    for text in every:
        texts.learn("ours", known(text))
    for _ in range(500):
        asked = "".join(draw.choices("abc", k=draw.randint(1, 14)))
        found, chars = texts.find("ours", asked)
        assert chars == common(found.text, asked) == max(common(text, asked) for text in every)


@pytest.mark.parametrize(
    ("one", "other", "chars"), [("", "a", 0), ("abc", "abd", 2), ("abc", "abcd", 3), ("abc", "abc", 3), ("b", "abc", 0)]
)
def test_common_characters_are_counted(one, other, chars):
    assert common(one, other) == common(other, one) == chars


def test_a_text_is_known_in_its_namespace_alone():
    texts = KnownTexts(1e6)
    texts.learn(("ours", None), known("abc"))
    assert texts.find(("theirs", None), "abcd") is None
    assert texts.find(("ours", None), "abcd")[1] == 3
    texts.learn(("theirs", None), known("abc", ids=[7, 8, 9]))
    assert list(texts.find(("ours", None), "abcd")[0].ids) == [97, 98, 99]
    assert list(texts.find(("theirs", None), "abcd")[0].ids) == [7, 8, 9]


def test_of_equal_texts_the_newest_is_known():
    texts = KnownTexts(1e6)
    texts.learn(0, known("abc"))
    texts.learn(0, known("abc", ids=[1, 2]))
    assert len(texts) == 1
    assert list(texts.find(0, "abcd")[0].ids) == [1, 2]
    assert texts.nbytes == alone("abc", ids=[1, 2])


def test_a_text_that_goes_on_from_another_replaces_it_if_it_has_its_ids_and_its_end():
    texts, first = KnownTexts(1e6), known("abc")
    texts.learn(0, first)
    apart = Known("abcde", array("q", [1, 2, 3, 4]), (Mark(1, 1), Mark(5, 4)))
    texts.learn(0, apart)
    assert len(texts) == 2
    endless = known("abcdf")
    texts.learn(0, endless)
    assert len(texts) == 3
    texts = KnownTexts(1e6)
    texts.learn(0, first)
    second = Known("abcdf", array("q", map(ord, "abcdf")), (Mark(1, 1), Mark(3, 3), Mark(5, 5)))
    texts.learn(0, second)
    assert (len(texts), texts.nbytes) == (1, second.nbytes + sys.getsizeof(0))
    assert texts.find(0, "abcz") == (second, 3)


def test_the_least_recently_used_goes_when_they_take_too_much():
    size = alone("a0", namespace="a")
    texts = KnownTexts(3 * size)
    for name in ("a0", "b0", "c0"):
        texts.learn(name[0], known(name))
    assert (len(texts), texts.nbytes) == (3, 3 * size)
    texts.find("a", "a0x")
    texts.learn("d", known("d0"))
    assert texts.find("b", "b0") is None
    assert all(texts.find(name, f"{name}0") for name in "acd")
    texts.learn("e", known("e" * 1000))
    assert (len(texts), texts.nbytes) == (3, 3 * size)
