"""What all requests together will take from the pool, against a count of pages step by step."""

import numpy as np
import pytest
from hypothesis import given, settings

from sglang_rpc.runtime.admission import Forecast, Plan
from tests.unit.admission.plays import NEW, draw_plan, play, seeds


def most_played(plans: list[Plan], page: int) -> int:
    """Slots that all of it takes beyond what is held now, counted page by page, row by row, step by step. A request
    ends with its last step, and its prompt stays in the tree."""

    def pages(prompt: int, generated: int) -> int:
        return -(-(prompt + generated) // page)

    steps = 1 + max(plan.remaining for plan in plans)
    total = np.zeros(steps + 1, dtype=int)
    for plan in plans:
        moments = play(plan)
        moments += [0 if plan.ends else moments[-1]] * (steps + 1 - len(moments))
        total += [pages(plan.prompt, held) - pages(plan.prompt, plan.held) for held in moments]
    return max(0, int(total.max())) * page


@pytest.mark.parametrize("page", [1, 4, 16])
@settings(max_examples=90)
@given(seeds)
def test_what_is_reserved_is_enough_at_every_step(page, rng):
    running, added = ([draw_plan(rng) for _ in range(n)] for n in (rng.randint(0, 4), rng.randint(1, 3)))
    forecast = Forecast(running, page)
    if running:
        assert forecast.peak >= most_played(running, page)
    for number, plan in enumerate(added, 1):
        before, promised = forecast.peak, forecast.peak_with(plan)
        assert forecast.peak == before  # asking changes nothing
        forecast.add(plan)
        assert forecast.peak == promised
        assert forecast.peak >= most_played(running + added[:number], page), (running, added, forecast.peak)


@given(seeds)
def test_a_single_request_reserves_whole_pages_and_no_more(rng):
    plan = draw_plan(rng, on_schedule=True)
    for page in (1, 4, 16):
        assert Forecast([plan], page).peak == most_played([plan], page)


def test_nothing_runs():
    forecast = Forecast([], page=16)
    assert forecast.peak == 0
    assert forecast.peak_with(Plan(**NEW, remaining=60, ends=True)) == 32  # 28 entries
    assert forecast.peak == 0
    forecast.add(Plan(**NEW, remaining=60, ends=True))
    assert forecast.peak == 32


def test_requests_that_do_not_peak_together_need_less_than_their_peaks():
    # P 1000, R 10, T 100. One is compressed in 10 steps, the other has just been, and grows by 500 until both end.
    budget = dict(interval=1000, window=10, budget_step=100, remaining=500, ends=True)
    nearly = Plan(held=1000, generated=1000, compresses_at=1010, **budget)
    freshly = Plan(held=110, generated=1010, compresses_at=2010, **budget)
    assert [Forecast([plan], page=1).peak for plan in (nearly, freshly)] == [10, 500]
    # When the second has grown by 500 the first holds 110 + 490: 400 less than now.
    assert most_played([nearly, freshly], 1) == 500 - 400 == Forecast([nearly, freshly], page=1).peak


def test_what_ends_makes_room_for_what_lasts():
    ending = Plan(held=500, generated=500, remaining=10, ends=True)
    lasting = Plan(held=100, generated=100, remaining=300, ends=True)
    # At step 10 both have grown by 10. From then on 500 are free, more than the other will ever add.
    assert most_played([ending, lasting], 1) == 20
    assert 20 <= Forecast([ending, lasting], page=1).peak <= 20 + 2 * 5  # a bucket is five steps long
    # If it is not known to end, nothing is.
    open_end = Plan(held=500, generated=500, remaining=10, ends=False)
    assert Forecast([open_end, lasting], page=1).peak == 10 + 300


def test_what_is_added_may_outlast_what_runs():
    forecast = Forecast([Plan(held=50, generated=50, remaining=10, ends=True)], page=1)
    assert forecast.peak == 10
    assert forecast.peak_with(Plan(held=0, generated=0, remaining=40, ends=True)) == max(10 + 10, 40 - 50)
    assert forecast.peak_with(Plan(held=0, generated=0, remaining=900, ends=True)) == 900 - 50
    assert forecast.peak_with(Plan(held=0, generated=0, remaining=900, ends=False)) == 900 - 50


def test_a_request_whose_tokens_are_out_reserves_nothing():
    for ends in (True, False):
        done = Plan(**{**NEW, "held": 20, "generated": 20}, remaining=0, ends=ends)
        assert Forecast([done], page=16).peak == 0


def test_long_thoughts_are_counted_without_overflow():
    plan = Plan(held=10**6, generated=10**9, remaining=10**9, ends=False)
    assert Forecast([plan] * 3, page=16).peak == 3 * 10**9
