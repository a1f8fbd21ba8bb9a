"""A reasoning segment that the model opens and closes."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.runtime.segment import SegmentTracker, TextMarker, ThinkMarkers
from tests.unit.segment.tokens import END, OTHER, START, TEXT, TOKEN, TOKENIZER, WORD, MergingTokenizer, encode, read


@pytest.mark.parametrize(
    ("prompt", "output", "wanted"),
    [
        ([START], [WORD, WORD], (0, False)),
        ([START], [WORD, END, WORD], (0, True)),
        ([], [WORD, WORD], (None, False)),
        ([], [START], (1, False)),
        ([], [WORD, START, WORD], (2, False)),
        ([], [WORD, START, WORD, END], (2, True)),
        ([], [START, END], (1, True)),
        ([], [END, WORD], (None, False)),
        ([], [END, START, WORD], (2, False)),
        ([], [START, START, WORD, END], (1, True)),  # the first start opens, the first end closes
        ([START], [START, WORD], (0, False)),
        ([START, END], [WORD, WORD], (None, False)),
    ],
)
def test_token_output(prompt, output, wanted):
    assert read(TOKEN, prompt, output) == wanted


@pytest.mark.parametrize(
    ("prompt", "output", "start", "closed"),
    [
        ("<think>\n", "ab", "", False),
        ("<think>\n", "ab\n</think>\n\nab", "", True),
        ("", "ab", None, False),
        ("", "<think>", "<think>", False),
        ("", "<think>\n\na", "<think>\n\n", False),  # the marker's last token reaches past it
        ("", "a<think>b</think>", "a<think>", True),
        ("", "</think>a<think>b", "</think>a<think>", False),
        ("", "<think>\n</think>\n\n", "<think>\n", True),
        ("", "b<think>ab<th</think>a", "b<think>a", True),
    ],
)
def test_text_output(prompt, output, start, closed):
    tokens = None if start is None else len(encode(start))
    assert read(TEXT, encode(prompt), encode(output)) == (tokens, closed)


def test_an_empty_thought_whose_token_belongs_to_both_markers_is_closed():
    output = encode("<think></think>ab")
    assert [TOKENIZER.pieces[i].decode() for i in output] == ["<", "think", "></", "think", ">", "ab"]
    assert read(TEXT, [], output) == (3, True)


@pytest.mark.parametrize("text", ["a<think>b</think>a", "ab<think>\n\nab\n</think>\n\na", "b<think>a</think>"])
def test_a_marker_cut_at_any_token_is_read(text):
    output = encode(text)
    wanted = read(TEXT, [], output)
    assert wanted[1]
    for cut in range(len(output) + 1):
        tracker, _ = shown_in_chunks(TEXT, [], output, [cut])
        assert (tracker.start, tracker.closed) == wanted, cut
    tracker, _ = shown_in_chunks(TEXT, [], output, range(len(output)))
    assert (tracker.start, tracker.closed) == wanted


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_a_marker_of_more_tokens_than_characters_is_read_in_pieces(chunk):
    markers = ThinkMarkers(TextMarker("◁▷", TOKENIZER.decode), TextMarker("◁/▷", TOKENIZER.decode))
    output = encode("ab◁▷ab◁/▷ab")
    tracker = SegmentTracker(markers, [])
    for upto in range(0, len(output) + chunk, chunk):
        tracker.advance(output, upto)
    assert (tracker.start, tracker.closed) == (len(encode("ab◁▷")), True)


def shown_in_chunks(markers, prompt, output, cuts):
    tracker = SegmentTracker(markers, prompt)
    seen = []
    for cut in [*sorted(cuts), len(output)]:
        tracker.advance(output, cut)
        seen.append((tracker.start, tracker.closed))
    return tracker, seen


@given(st.lists(st.sampled_from([WORD, OTHER, START, END]), max_size=40), st.booleans(), st.data())
def test_tokens_in_chunks_equal_one_shot(output, opened, data):
    check_chunks(TOKEN, [START] if opened else [], output, data)


WORDS = st.sampled_from(
    ["a", "b", " ", "\n", "<think>", "</think>", "<", "</", "think", ">", ">\n", "k>a", "b<th", "◁"]
)


@given(st.lists(WORDS, max_size=25).map("".join).map(encode), st.booleans(), st.data())
def test_text_in_chunks_equals_one_shot(output, opened, data):
    check_chunks(TEXT, encode("<think>") if opened else [], output, data)


@given(st.lists(st.sampled_from(range(len(MergingTokenizer.PIECES))), max_size=30), st.booleans(), st.data())
def test_any_tokens_in_chunks_equal_one_shot(output, opened, data):
    # A model may emit pieces in ways no tokenizer would cut a text.
    check_chunks(TEXT, encode("<think>") if opened else [], output, data)


def check_chunks(markers, prompt, output, data):
    cuts = data.draw(st.lists(st.integers(0, len(output)), max_size=12))
    tracker, seen = shown_in_chunks(markers, prompt, output, cuts)
    assert (tracker.start, tracker.closed) == read(markers, prompt, output)
    opened = [start for start, _ in seen if start is not None]
    assert len(set(opened)) <= 1  # result once, it stays
    closed = [closed for _, closed in seen]
    assert closed == sorted(closed)


def test_tokens_after_upto_are_not_read():
    tracker = SegmentTracker(TOKEN, [START])
    output = [WORD, WORD, END]
    tracker.advance(output, 2)
    assert not tracker.closed
    tracker.advance(output, 3)
    assert tracker.closed


def test_going_back_changes_nothing():
    # After a retraction the same tokens are shown again.
    tracker = SegmentTracker(TOKEN, [])
    output = [WORD, START, WORD, END]
    tracker.advance(output, 3)
    for upto in (0, 1, 3):
        tracker.advance(output, upto)
        assert (tracker.start, tracker.closed) == (2, False)
    tracker.advance(output, 4)
    assert tracker.closed


def test_a_start_after_the_end_of_the_thought_does_not_open_again():
    assert read(TOKEN, [START], [END, START, WORD]) == (0, True)


def test_a_long_output_read_token_by_token_is_fast():
    rng = random.Random(0)
    output = [rng.choice((0, 1, 3, 10, 11, 12)) for _ in range(5_000)]
    tracker = SegmentTracker(TEXT, encode("<think>"))
    begin = time.perf_counter()
    for upto in range(len(output) + 1):
        tracker.advance(output, upto)
    assert time.perf_counter() - begin < 1.0
