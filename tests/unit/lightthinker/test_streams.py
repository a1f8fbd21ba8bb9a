"""Thoughts and their gists in token streams."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sglang_rpc.policy.lightthinker import Gists, Thought, Thoughts
from tests.unit.lightthinker.gists import GISTS


def read(output, gists=GISTS, start=0):
    thoughts = Thoughts(gists)
    thoughts.advance(output, len(output), start)
    return [(t.begin, t.end, t.complete) for t in thoughts.done]


def by_hand(output, gists, start=0):
    """The same from the whole text: from the left, the first whole run of gists, then what comes after it."""
    thoughts, begin, at, size = [], start, start, len(gists.ids)
    while at + size <= len(output):
        if tuple(output[at : at + size]) != gists.ids:
            at += 1
            continue
        if begin < at:
            thoughts.append((begin, at, at + size))
        at += size
        begin = at + (at < len(output) and output[at] == gists.resume)
    return thoughts


def test_a_thought_is_done_when_its_last_gist_is_there():
    thoughts, output = Thoughts(GISTS), [1, 2, 91, 92, 93, 99, 3]
    for upto in range(5):
        thoughts.advance(output, upto)
        assert thoughts.done == []
    thoughts.advance(output, 5)
    assert thoughts.done == [Thought(0, 2, 5)]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([], []),
        ([1, 2, 3], []),  # never summed up: it stays
        ([1, 91, 92, 93], [(0, 1, 4)]),
        ([1, 91, 92, 93, 99, 2, 3, 91, 92, 93], [(0, 1, 4), (5, 7, 10)]),  # what resumes is kept, as the gists are
        ([1, 91, 92, 93, 2, 99, 91, 92, 93], [(0, 1, 4), (4, 6, 9)]),  # elsewhere it is a word
        ([99, 91, 92, 93], [(0, 1, 4)]),
        ([91, 92, 93, 1], []),  # an empty thought
        ([1, 91, 92, 93, 91, 92, 93, 99, 91, 92, 93], [(0, 1, 4)]),
        ([1, 91, 92, 2, 93, 91, 92, 93], [(0, 5, 8)]),  # a broken run is text
        ([1, 92, 93, 91], []),  # in another order too
        ([1, 91, 91, 92, 93], [(0, 2, 5)]),
        ([1, 91, 92, 91, 92, 93], [(0, 3, 6)]),
    ],
)
def test_streams(output, expected):
    assert read(output) == expected == by_hand(output, GISTS)


def test_one_id_may_be_said_several_times():
    assert read([1, 5, 5, 2, 5, 5, 5], Gists((5, 5))) == [(0, 1, 3), (3, 4, 6)]
    assert read([1, 1, 1, 2], Gists((1, 1, 2))) == [(0, 1, 4)]


def test_a_thought_may_begin_after_what_is_no_thought():
    assert read([91, 92, 93, 1, 91, 92, 93], start=3) == [(3, 4, 7)]
    assert read([1, 91, 92, 93, 91, 92, 93], start=2) == [(2, 4, 7)]  # gists that began before it are none


def test_a_single_gist_token():
    assert read([1, 2, 9, 3, 9], Gists((9,))) == [(0, 2, 3), (3, 4, 5)]


RUNS = st.lists(st.sampled_from([1, 2, 3, 9]), max_size=40)


@given(RUNS, st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4), st.integers(0, 5))
@example([1, 1, 2, 1, 1, 2, 1, 1, 3], [1, 1, 2, 1, 1, 3], 0)
def test_any_stream_is_read_as_by_hand_however_it_comes(output, ids, start):
    gists = Gists(tuple(ids), resume=9)
    assert read(output, gists, start) == by_hand(output, gists, start)
    thoughts, next_poll = Thoughts(gists), start
    for upto in range(start, len(output) + 1):
        before = len(thoughts.done)
        complete = [end for *_, end in by_hand(output[:upto], gists, start)]
        if upto >= next_poll:  # no poll comes earlier than it says
            thoughts.advance(output, upto, start)
            assert thoughts.next_check > upto
            next_poll = thoughts.next_check
            # Each new thought was completed by this very token: no poll came too late.
            assert [t.complete for t in thoughts.done] == complete
            assert set(complete[before:]) <= {upto}
        else:
            assert len(complete) == before
