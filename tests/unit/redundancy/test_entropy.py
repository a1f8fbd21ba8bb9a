"""Entropy of n-grams: sequences whose entropy is known exactly, and what holds of all of them."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.redundancy import texts
from eval.redundancy.entropy import distinct_share, entropy, most, ngrams, repeats, share
from eval.redundancy.measure import Measured, groups, measure, windows

SEQUENCES = st.lists(st.integers(0, 5), max_size=60)


def de_bruijn(symbols: int, n: int) -> list[int]:
    """A sequence in which every n-gram over `symbols` stands exactly once: symbols^n + n - 1 long (prefer-largest)."""
    sequence, seen = [0] * n, {(0,) * n}
    while True:
        tail = sequence[len(sequence) - n + 1 :]
        following = next((s for s in reversed(range(symbols)) if (*tail, s) not in seen), None)
        if following is None:
            return sequence
        seen.add((*tail, following))
        sequence.append(following)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_constant_sequence_has_no_entropy(n):
    assert entropy([7] * 50, n) == 0.0
    assert math.copysign(1, entropy([7] * 50, n)) == 1
    assert distinct_share([7] * 50, n) == 1 / (50 - n + 1)


def test_two_tokens_in_turn_have_one_bit_whatever_n():
    assert entropy([0, 1] * 32, 1) == 1.0
    assert entropy([0, 1] * 32 + [0], 2) == 1.0  # 32 of (0, 1), 32 of (1, 0)
    assert entropy([0, 1] * 32 + [0, 1], 3) == 1.0
    # One (0, 1) more than (1, 0): not quite.
    assert entropy([0, 1] * 2, 2) == pytest.approx(-(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3)))


@pytest.mark.parametrize("k", range(8))
def test_every_token_once_has_the_bits_of_their_number(k):
    for n in (1, 2, 3):
        tokens = list(range(2**k + n - 1))
        assert entropy(tokens, n) == k == most(len(tokens), n)
        assert distinct_share(tokens, n) == 1


@pytest.mark.parametrize(("symbols", "n"), [(2, 1), (2, 3), (4, 2), (4, 3), (8, 2)])
def test_a_de_bruijn_sequence_has_the_bits_of_all_its_n_grams(symbols, n):
    tokens = de_bruijn(symbols, n)
    assert sorted(ngrams(tokens, n)) == sorted(product(range(symbols), repeat=n))
    assert entropy(tokens, n) == n * math.log2(symbols)


def test_a_known_unequal_distribution():
    tokens = ["a"] * 8 + ["b"] * 4 + ["c"] * 2 + ["d"] * 2
    assert entropy(tokens, 1) == 1.75  # the textbook's 1/2, 1/4, 1/8, 1/8


@pytest.mark.parametrize("n", [1, 2, 3])
def test_shorter_than_n_is_nothing_to_measure(n):
    tokens = list(range(n - 1))
    assert ngrams(tokens, n) == []
    assert repeats(tokens, n) == [False] * (n - 1)
    assert math.isnan(entropy(tokens, n))
    assert math.isnan(distinct_share(tokens, n))
    assert math.isnan(most(n - 1, n))
    assert math.isnan(share([]))


@given(SEQUENCES, st.integers(1, 4))
def test_bounds(tokens, n):
    if len(tokens) >= n:
        assert 0 <= entropy(tokens, n) <= most(len(tokens), n) + 1e-9


@given(SEQUENCES, st.permutations(range(6)), st.integers(1, 3))
def test_names_of_tokens_do_not_matter(tokens, names, n):
    assert entropy([names[t] for t in tokens], n) == pytest.approx(entropy(tokens, n), nan_ok=True)


@given(SEQUENCES, st.integers(1, 3))
def test_an_n_gram_says_no_less_than_its_beginning(tokens, n):
    """What holds between orders: of the same places, longer n-grams have no less entropy, and no more than their parts
    have together. H_2 < H_1 of one sequence is possible, since the last token begins no bigram."""
    if len(tokens) >= n + 1:
        parts = [tokens[first : len(tokens) - n + first] for first in range(n + 1)]
        longer = entropy(tokens, n + 1)
        assert longer >= entropy(tokens[:-1], n) - 1e-9
        assert longer <= sum(entropy(part, 1) for part in parts) + 1e-9


def test_the_entropy_of_bigrams_may_be_below_that_of_tokens():
    assert entropy([0, 0, 1], 2) == 1.0
    assert entropy([0, 1], 2) == 0.0 < entropy([0, 1], 1)


@given(SEQUENCES, st.integers(1, 3))
def test_what_is_no_repeat_is_distinct(tokens, n):
    marks = repeats(tokens, n)
    assert len(marks) == len(tokens)
    assert len(ngrams(tokens, n)) - sum(marks) == len(set(ngrams(tokens, n)))


def test_repeats_are_marked_where_the_n_gram_ends():
    assert repeats("abcabd", 1) == [False, False, False, True, True, False]
    assert repeats("abcabd", 2) == [False, False, False, False, True, False]


def test_windows_are_whole_and_of_one_length():
    assert windows("abcdefg", 3, every=True) == ["abc", "def"]
    assert windows("abcdefg", 3, every=False) == ["abc"]
    assert windows("ab", 3, every=True) == windows("ab", 3, every=False) == []


def test_a_text_is_measured_by_its_windows_mean():
    first, _, third = measure(texts.Text("g", "t", "aaaaabab"), 4, every=True)
    assert (first.n, first.entropy, first.windows, first.length, first.tokens) == (1, 0.5, 2, 8, 4)
    assert third.entropy == 0.5
    assert third.distinct == (1 / 2 + 1) / 2
    assert third.most == 1
    assert [row.entropy for row in measure(texts.Text("g", "t", "aaaaabab"), 4, every=False)] == [0, 0, 0]


def test_a_group_is_the_mean_over_texts_with_its_standard_error():
    rows = [Measured("g", str(i), 1, value, value / 10, 9, 4, 1, 4) for i, value in enumerate((1.0, 2.0, 3.0))]
    (mean,) = groups(rows)
    assert (mean.texts, mean.entropy, mean.distinct) == (3, 2.0, pytest.approx(0.2))
    assert mean.error == pytest.approx(1 / math.sqrt(3))
    assert mean.distinct_error == pytest.approx(0.1 / math.sqrt(3))
    assert math.isnan(groups(rows[:1])[0].error)
    constant = [Measured("g", str(i), 1, 0.0, 0.0, 9, 4, 1, 4) for i in range(3)]
    assert groups(constant)[0].error == 0  # not a share: that all are 0 is known
