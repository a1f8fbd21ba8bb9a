"""What waits for query slots cost: the bound on them, and the forecast that counts them, against loops played."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_rpc.runtime.admission import Forecast, Plan, highest_held
from sglang_rpc.runtime.slot_waits import affordable_slots, due_together, longest_wait
from tests.loops.decode_loop import Loop, config
from tests.unit.admission.plays import NEW

TOTAL = 90


@pytest.mark.parametrize(
    ("pool", "interval", "rows", "together"),
    [(102_400, 1024, 256, 100), (102_400, 1024, 64, 64), (102_400, 4096, 256, 25), (500, 4096, 256, 1)],
)
def test_as_many_are_due_together_as_the_pool_holds_intervals(pool, interval, rows, together):
    assert due_together(pool, interval, rows) == together


@pytest.mark.parametrize(
    ("needed", "slot_bytes", "slots"),
    [(24, 10, 24), (24, 400, 24), (24, 401, 23), (24, 1000, 9), (24, 9999, 1), (24, 10**6, 1)],
)
def test_the_ring_with_its_dummy_slot_takes_a_tenth_of_the_pools_bytes_at_most(needed, slot_bytes, slots):
    assert affordable_slots(needed, slot_bytes, pool_bytes=100_000) == slots


@pytest.mark.parametrize(("requests", "waves"), [(0, 0), (1, 0), (8, 0), (9, 1), (16, 1), (17, 2), (128, 15)])
def test_a_wave_waits_for_those_before_it(requests, waves):
    assert longest_wait(requests, slots=8, window=32) == waves * 33


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_is_forecast_is_enough_however_few_slots_there_are(data):
    number = data.draw(st.integers(2, 7), "requests")
    slots = data.draw(st.integers(1, number), "slots")
    interval, window = data.draw(st.integers(3, 30), "interval"), data.draw(st.integers(1, 12), "window")
    ratio = data.draw(st.sampled_from([1.5, 2, 4] if interval >= 4 else [1.5, 2]), "ratio")
    starts = sorted(data.draw(st.lists(st.integers(0, 12), min_size=number, max_size=number), "starts"))
    loop = Loop(config(interval, window, ratio, kernel_size=1), slots=slots, rows=number, check=False)
    pending, forecasts, step = list(enumerate(starts)), [], 0
    while pending or any(r.generated < TOTAL for r in loop.requests):
        while pending and pending[0][1] <= step:
            loop.add(pending.pop(0)[0], prompt=0)
        loop.poll()
        running = [r for r in loop.requests if r.generated < TOTAL]
        if not pending and step % 5 == 0:
            plans = [r.state.plan(r.generated, TOTAL - r.generated, True, 0) for r in running]
            forecasts.append((running, sum(r.length for r in running), Forecast(plans, 1, slots).peak))
        for request in running:
            loop._decode(request)
            if request.generated == TOTAL:
                loop.finish(request)
                request.length = 0
        for among, before, peak in forecasts:
            assert sum(r.length for r in among) - before <= peak, (step, peak)
        step += 1


@pytest.mark.parametrize(("interval", "wait"), [(33, 33), (32, 34), (20, 46)])
def test_intervals_below_the_window_wait_longer(interval, wait):
    assert longest_wait(9, 8, 32, interval) == wait
    assert longest_wait(8, 8, 32, interval) == 0


def test_with_a_slot_for_each_the_forecast_knows_no_waits():
    plans = [Plan(**NEW, remaining=60, ends=True)] * 4
    assert Forecast(plans, 1, slots=4).peak == Forecast(plans, 1).peak == 4 * 28
    # With three, the last waits one wave of 4 + 1 steps, and nobody knows which it is.
    assert Forecast(plans, 1, slots=3).peak == 4 * (28 + 5)


def test_those_that_hold_a_slot_do_not_wait_for_their_next_date():
    due = dict(held=16, generated=16, compresses_at=20, interval=16, window=4, budget_step=4, ends=True)
    later = dict(due, remaining=8)
    assert Forecast([Plan(**later)] * 2, 1, slots=1).peak == 2 * 8  # both may wait for 5 steps
    assert Forecast([Plan(**later, holds_slot=True)] * 2, 1, slots=1).peak == 2 * 4


def test_one_more_request_makes_all_wait_longer():
    plan = Plan(**NEW, remaining=60, ends=True)
    forecast = Forecast([plan] * 3, 1, slots=3)
    assert forecast.peak == 3 * 28
    promised = forecast.peak_with(plan)
    assert forecast.peak == 3 * 28  # asking changes nothing
    forecast.add(plan)
    assert forecast.peak == promised == Forecast([plan] * 4, 1, slots=3).peak == 4 * (28 + 5)
    forecast.add(plan)
    assert forecast.peak == Forecast([plan] * 5, 1, slots=3).peak == 5 * (28 + 5)


def test_requests_that_are_never_compressed_take_no_slot():
    never, once = Plan(10, 10, 60, True), Plan(**NEW, remaining=60, ends=True)
    assert Forecast([never] * 5 + [once], 1, slots=1).peak == Forecast([never] * 5 + [once], 1).peak


def test_all_wait_as_long_as_the_widest_window():
    narrow = Plan(**NEW, remaining=60, ends=True)
    wide = Plan(**dict(NEW, window=9, compresses_at=25), remaining=60, ends=True)
    each_step = np.arange(61)
    after_4, after_9 = (
        highest_held([narrow, wide], each_step, each_step, wait).sum(axis=0).max() for wait in (4 + 1, 9 + 1)
    )
    assert after_4 < after_9 <= Forecast([narrow, wide], 1, slots=1).peak <= after_9 + 2  # two steps a bucket
