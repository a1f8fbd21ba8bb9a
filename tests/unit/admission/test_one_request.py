"""What one request will hold: the closed forms against requests that are played token by token."""

import numpy as np
import pytest
from hypothesis import given, settings

from sglang_rpc.policy.budget import Budget
from sglang_rpc.runtime.admission import Forecast, Plan, highest_held
from sglang_rpc.types import NEVER
from tests.unit.admission.plays import NEW, draw_buckets, draw_plan, highest_played, play, seeds


@settings(max_examples=150)
@given(seeds)
def test_no_moment_of_a_bucket_is_higher(rng):
    plan, (begin, end) = draw_plan(rng), draw_buckets(rng)
    result = highest_held([plan], begin, end)[0]
    played = highest_played(plan, begin, end)
    assert all(result >= played), (plan, begin, result, played)


@settings(max_examples=150)
@given(seeds)
def test_on_the_regular_schedule_it_is_exact(rng):
    plan, (begin, end) = draw_plan(rng, on_schedule=True), draw_buckets(rng)
    if not plan.ends:  # a bucket in which its tokens run out may be counted as what follows it
        end[begin < plan.remaining] = end[begin < plan.remaining].clip(max=plan.remaining)
    assert highest_held([plan], begin, end)[0].tolist() == highest_played(plan, begin, end), plan
    if plan.remaining:
        assert Forecast([plan], page=1).peak == max(play(plan)) - plan.held


@settings(max_examples=100)
@given(seeds)
def test_until_the_next_compression_it_is_exact_whatever_is_held(rng):
    plan = draw_plan(rng)
    last = max(0, plan.compresses_at - plan.generated)  # overdue, it is compressed at once
    if last < plan.remaining:
        begin, end = np.arange(last + 1), np.full(last + 1, last)
        assert highest_held([plan], begin, end)[0].tolist() == [plan.held + last] * (last + 1), plan


@given(seeds)
def test_a_request_that_is_never_compressed_is_exact_too(rng):
    held, generated, remaining = (rng.randint(0, 100) for _ in range(3))
    plan = Plan(held, generated, remaining, ends=rng.random() < 0.5)
    begin, end = draw_buckets(rng)
    played = highest_played(plan, begin, end)
    assert highest_held([plan], begin, end)[0].tolist() == played
    assert Forecast([plan], page=1).peak == remaining


@given(seeds)
def test_plans_side_by_side_are_as_each_alone(rng):
    plans, (begin, end) = [draw_plan(rng) for _ in range(5)], draw_buckets(rng)
    together = highest_held(plans, begin, end)
    assert together.shape == (5, len(begin))
    assert together.dtype == np.int64
    assert together.tolist() == [highest_held([plan], begin, end)[0].tolist() for plan in plans]


def by_step(plan: Plan) -> list[int]:
    steps = np.arange(plan.remaining)
    return highest_held([plan], steps, steps)[0].tolist()


def test_step_by_step_across_the_due_dates():
    held = by_step(Plan(**NEW, remaining=60, ends=True))
    assert held[:21] == list(range(21))
    assert held[21:37] == list(range(9, 25))
    assert held[37:53] == list(range(13, 29))
    assert held[53:] == list(range(17, 24))


@pytest.mark.parametrize(
    ("tokens", "peak"),
    [
        (0, 0),
        (1, 1),
        (19, 19),
        (20, 20),
        (21, 20),
        (31, 20),
        (32, 20),
        (33, 21),
        (35, 23),
        (36, 24),
        (37, 24),
        (53, 28),
    ],
)
@pytest.mark.parametrize("ends", [True, False])
def test_a_new_request_reserves_its_peak(tokens, peak, ends):
    assert Forecast([Plan(**NEW, remaining=tokens, ends=ends)], page=1).peak == peak
    assert Budget(16, 4, 4).peak(tokens) == peak


@pytest.mark.parametrize(
    ("generated", "held", "due", "then"),
    [
        (19, 19, 20, [19, 20, 9, 10]),
        (20, 20, 20, [20, 9, 10, 11]),  # just before its compression
        (20, 8, 36, [8, 9, 10, 11]),  # just after
        (21, 9, 36, [9, 10, 11, 12]),
        (35, 23, 36, [23, 24, 13, 14]),
        (22, 22, 24, [22, 23, 24, 9]),  # late: it takes with it what came since, and what is counted is not less
    ],
)
def test_a_running_request_at_a_due_date(generated, held, due, then):
    plan = Plan(**{**NEW, "held": held, "generated": generated, "compresses_at": due}, remaining=4, ends=True)
    assert play(plan)[:4] == then
    result = by_step(plan)
    if due == 24:
        assert result[:3] == then[:3]
        assert result[3] >= then[3]
    else:
        assert result == then


def test_what_stands_before_the_thought_stays():
    steps = np.arange(40)
    thinking = Plan(**{**NEW, "held": 7, "generated": 7, "compresses_at": 27, "start": 7}, remaining=50, ends=True)
    plain = Plan(**NEW, remaining=50, ends=True)
    assert (highest_held([thinking], steps, steps) == highest_held([plain], steps, steps) + 7).all()


def test_a_request_of_known_length_is_gone_at_its_end():
    known, unknown = (Plan(**NEW, remaining=30, ends=ends) for ends in (True, False))
    begin, end = np.array([0, 25, 30, 1000]), np.array([25, 30, 1000, NEVER])
    assert highest_held([known], begin, end)[0].tolist() == [20, 18, 0, 0]
    # Of unknown length, it stays at the highest it ever was: 20, though 18 are held when the reserved tokens are out.
    assert highest_held([unknown], begin, end)[0].tolist() == [20, 18, 20, 20]
