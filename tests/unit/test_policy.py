"""The budget's closed forms against a request that is played token by token."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.budget import Budget

PAPERS = Budget(4096, 32, 1024)


@dataclass
class Played:
    compressions: int
    held: int
    peak: int
    due: int  #: logical length of the next compression


def play(generated: int, interval: int, window: int, step: int, least: int = 0) -> Played:
    """The method as the paper words it: P+R tokens, then P more each time; nothing of the formulas under test."""
    compressions = held = peak = 0
    due = interval + window
    for length in range(1, generated + 1):
        held += 1
        peak = max(peak, held)
        if length == due:
            compressions += 1
            held = min(held, max(least, compressions * step) + window)
            due += interval
    return Played(compressions, held, peak, due)


budgets = st.integers(2, 40).flatmap(
    lambda interval: st.tuples(
        st.just(interval), st.integers(1, 50), st.floats(1, interval, exclude_min=True).map(lambda c: int(interval / c))
    )
)


@given(budgets, st.integers(0, 400), st.sampled_from([0, 0, 1, 7, 16, 50, 130]))
def test_every_formula_equals_the_played_request(numbers, generated, least):
    interval, window, step = numbers
    played = play(generated, interval, window, step, least)
    budget = Budget(interval, window, step, least)
    done = budget.compressions_due(generated)
    assert done == played.compressions
    assert budget.peak(generated) == played.peak
    if done:
        survivors = min(budget.kept(done), done * interval)
        assert survivors + window + (generated - played.due + interval) == played.held


@given(budgets, st.integers(0, 400), st.sampled_from([0, 0, 1, 7, 16, 50, 130]))
def test_the_next_date_is_the_next_that_evicts_anything(numbers, generated, least):
    interval, window, step = numbers
    budget = Budget(interval, window, step, least)
    due = budget.next_due(budget.compressions_due(generated))
    before, after = play(due - 1, interval, window, step, least), play(due, interval, window, step, least)
    assert after.held <= before.held
    for date in range(play(generated, interval, window, step).due, due, interval):  # those that are passed over
        assert play(date, interval, window, step, least).held == date


@given(budgets, st.integers(0, 30))
def test_due_counts_up_exactly_at_next_due(numbers, done):
    budget = Budget(*numbers)
    due = budget.next_due(done)
    assert budget.compressions_due(due - 1) == done
    assert budget.compressions_due(due) == done + 1


@pytest.mark.parametrize("generated", [0, 1, 31, 32, 4127])
def test_nothing_is_due_before_p_plus_r(generated):
    assert PAPERS.compressions_due(generated) == 0
    assert PAPERS.peak(generated) == generated


def test_the_papers_example():
    # P 4096, R 32, c 4: 1024 more after each; a 32 K thought is held in at most 7*1024 + 32 + 4096 entries.
    assert Budget(4096, 32, RPCConfig().budget_step) == PAPERS
    assert PAPERS.compressions_due(32768) == 7
    assert PAPERS.kept(7) == 7168
    assert PAPERS.peak(32768) == 7 * 1024 + 32768 - 7 * 4096


def test_the_budget_step_is_truncated_not_rounded():
    assert RPCConfig(interval=7, ratio=4).budget_step == 1
    assert RPCConfig(interval=10, ratio=2.7).budget_step == 3
    assert RPCConfig(interval=4096, ratio=3).budget_step == 1365


# --- before the due date ----------------------------------------------------------------------------------------

ratios = st.integers(2, 200).flatmap(
    lambda interval: st.tuples(st.just(interval), st.integers(1, 50), st.floats(1, interval, exclude_min=True))
)


@given(ratios, st.integers(0, 20))
def test_an_early_budget_grows_from_one_due_date_to_the_next(numbers, done):
    interval, window, ratio = numbers
    step = int(interval / ratio)
    budget = Budget(interval, window, step)
    last, due = done * interval + window, budget.next_due(done)
    kept = [budget.early_kept(g, done, ratio) for g in range(last, due + 1)]
    assert kept[0] == budget.kept(done)
    assert kept[-1] == budget.kept(done + 1)
    # Of each candidate that comes it takes one or none: there is never less to evict than a moment ago.
    assert all(0 <= later - earlier <= 1 for earlier, later in pairwise(kept))
    for came, keep in enumerate(kept):
        assert keep == done * step + int(came / ratio)


@given(ratios, st.integers(0, 20), st.data())
def test_at_a_higher_ratio_no_more_is_kept(numbers, done, data):
    interval, window, ratio = numbers
    generated = done * interval + window + data.draw(st.integers(0, interval))
    higher = ratio * data.draw(st.floats(1, 16))
    budget = Budget(interval, window, int(interval / ratio))
    at_own, at_higher = (budget.early_kept(generated, done, c) for c in (ratio, higher))
    assert 0 <= at_higher <= at_own


@pytest.mark.parametrize(
    ("generated", "done", "ratio", "kept"),
    [
        (32, 0, 4, 0),
        (2080, 0, 4, 512),  # half-way to the first compression, half of its budget
        (2080, 0, 8, 256),
        (4127, 0, 4, 1023),
        (4128, 0, 4, 1024),
        (4128, 1, 4, 1024),
        (4131, 1, 4, 1024),
        (4132, 1, 4, 1025),
        (4132, 1, 16, 256),  # what an earlier compression kept is thinned out too
        (20, 0, 4, 0),  # not yet a window: nothing to keep, and nothing to evict
    ],
)
def test_an_early_budget_of_the_papers_example(generated, done, ratio, kept):
    assert PAPERS.early_kept(generated, done, ratio) == kept
