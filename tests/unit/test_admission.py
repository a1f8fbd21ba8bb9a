"""What a request will hold: the closed forms against requests that are played token by token."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.policy import budget
from sglang_rpc.runtime.admission import Forecast, Plan, highest_held, longest, refuse_unfit
from sglang_rpc.types import NEVER
from tests.loops.decode_loop import Loop


def play(plan: Plan) -> list[int]:
    """What it holds after 0, 1, ... `remaining` steps, before a compression that is due there: its highest moments."""
    held, due, moments = plan.held, plan.compresses_at, []
    for generated in range(plan.generated, plan.generated + plan.remaining + 1):
        moments.append(held)
        if generated >= due:
            compressions = (generated - plan.start - plan.window) // plan.interval
            held = min(held, plan.start + compressions * plan.budget_step + plan.window)
            due = plan.start + (compressions + 1) * plan.interval + plan.window
        held += 1
    return moments


def draw_plan(rng: random.Random, on_schedule: bool | None = None) -> Plan:
    """A request somewhere on its way: on its regular schedule, or holding less, or late with its next compression."""
    interval, window, start = rng.randint(2, 30), rng.randint(1, 20), rng.choice([0, 0, rng.randint(1, 20)])
    step, region = rng.randint(1, interval - 1), rng.randint(0, 100)
    generated, remaining, ends = start + region, rng.randint(0, 120), rng.random() < 0.6
    prompt = rng.randint(0, 40)
    if on_schedule is None and rng.random() < 0.2:
        return Plan(rng.randint(0, generated), generated, remaining, ends, prompt=prompt)  # never compressed
    if on_schedule is None:
        on_schedule = rng.random() < 0.3
    done = max(0, (region - window) // interval)
    if on_schedule and done and (region - window) % interval == 0 and rng.random() < 0.5:
        done -= 1  # it is due at this very step
    if not on_schedule:
        done = rng.randint(0, done)
    held = start + region - done * (interval - step)
    due = start + (done + 1) * interval + window
    if not on_schedule:
        held = rng.randint(start + min(region, window), held)
        due += rng.choice([0, rng.randint(0, 40)])
    return Plan(held, generated, remaining, ends, due, start, interval, window, step, prompt)


def draw_stretches(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """From now on without a gap; the last one has no end."""
    begin = np.array([0, *sorted(rng.randint(0, 150) for _ in range(rng.randint(0, 8)))])
    return begin, np.append(begin[1:], NEVER)


def highest_played(plan: Plan, begin: np.ndarray, end: np.ndarray) -> list[int]:
    moments = play(plan)
    afterwards = 0 if plan.ends else max(moments)
    return [max(moments[b : e + 1]) if b < plan.remaining else afterwards for b, e in zip(begin, end, strict=True)]


seeds = st.integers(0, 2**32).map(random.Random)


# --- one request ------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(seeds)
def test_no_moment_of_a_stretch_is_higher(rng):
    plan, (begin, end) = draw_plan(rng), draw_stretches(rng)
    found = highest_held([plan], begin, end)[0]
    played = highest_played(plan, begin, end)
    assert all(found >= played), (plan, begin, found, played)


@settings(max_examples=150)
@given(seeds)
def test_on_the_regular_schedule_it_is_exact(rng):
    plan, (begin, end) = draw_plan(rng, on_schedule=True), draw_stretches(rng)
    if not plan.ends:  # a stretch in which its tokens run out may be counted as what follows it
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
    begin, end = draw_stretches(rng)
    played = highest_played(plan, begin, end)
    assert highest_held([plan], begin, end)[0].tolist() == played
    assert Forecast([plan], page=1).peak == remaining


@given(seeds)
def test_plans_side_by_side_are_as_each_alone(rng):
    plans, (begin, end) = [draw_plan(rng) for _ in range(5)], draw_stretches(rng)
    together = highest_held(plans, begin, end)
    assert together.shape == (5, len(begin)) and together.dtype == np.int64
    assert together.tolist() == [highest_held([plan], begin, end)[0].tolist() for plan in plans]


# P 16, R 4, T 4: due at 20, 36 and 52, where 20, 24 and 28 are held and 8, 12 and 16 are kept.
NEW = dict(held=0, generated=0, compresses_at=20, interval=16, window=4, budget_step=4)


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
    assert budget.peak_held(tokens, 16, 4, 4) == peak


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
    found = by_step(plan)
    if due == 24:
        assert found[:3] == then[:3] and found[3] >= then[3]
    else:
        assert found == then


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


# --- all requests together --------------------------------------------------------------------------------------


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
    assert 20 <= Forecast([ending, lasting], page=1).peak <= 20 + 2 * 5  # a stretch is five steps long
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


# --- what was planned, and what was held ------------------------------------------------------------------------


TOTAL = 90


class Planned:
    """A played decode loop in which one request is planned anew at every step."""

    def __init__(self, budget: tuple[int, int, float], when_short: float | None = None):
        interval, window, ratio = budget
        config = RPCConfig(interval=interval, window=window, ratio=ratio, scope="all", kernel_size=1)
        self.loop = Loop(config, slots=1, check=False)
        self.request = self.loop.add()
        self.ratio = when_short  #: at which it gives way at every step, if it does
        self.plans: dict[int, Plan] = {}
        self.arrived: dict[int, int] = {}  #: entries held at each step, before anything is compressed

    def run(self, upto: int) -> None:
        request = self.request
        while request.generated < upto:
            self.loop.poll()
            if self.ratio is not None:
                self.loop.record_ahead(request)
                self.loop.evict_early(request, self.ratio)
            self.plans[request.generated] = request.state.plan(request.generated, TOTAL - request.generated, True, 0)
            self.loop._decode(request)
            self.arrived[request.generated] = request.length - len(request.prompt)

    def surplus(self) -> list[int]:
        """How much more was planned than held, for each plan and each step behind it."""
        self.run(TOTAL)
        assert self.request.state.totals.compressions > 1
        result = []
        for generated, plan in self.plans.items():
            steps = np.arange(TOTAL - generated)
            most = highest_held([plan], steps, steps)[0].tolist()
            result += [most[step] - self.arrived[generated + step] for step in range(1, len(most))]
        return result


several_budgets = pytest.mark.parametrize("budget", [(16, 4, 4), (5, 8, 2), (16, 4, 1.2), (2, 1, 2)], ids=str)


@several_budgets
def test_what_was_planned_is_what_is_held(budget):
    surplus = Planned(budget).surplus()
    assert set(surplus) == {0} and len(surplus) == TOTAL * (TOTAL - 1) / 2


@several_budgets
@pytest.mark.parametrize("factor", [1, 4])
def test_giving_way_holds_no_more_than_was_planned(budget, factor):
    planned = Planned(budget, when_short=budget[2] * factor)
    surplus = planned.surplus()
    assert min(surplus) >= 0
    assert (max(surplus) > 0) == (planned.request.early != [])


@several_budgets
@pytest.mark.parametrize("at", [10, 29, 36, 50])
def test_after_a_retraction_no_more_is_held_than_is_planned(budget, at):
    planned = Planned(budget)
    planned.run(at)
    planned.loop.retract(planned.request)
    planned.plans.clear()
    assert min(planned.surplus()) >= 0
    assert planned.plans[at].held == at


@several_budgets
@pytest.mark.parametrize("at", [10, 29, 36, 50])
def test_a_restored_request_was_planned_as_if_it_had_not_left(budget, at):
    planned, stayed = Planned(budget), Planned(budget)
    planned.run(at)
    planned.loop.poll()
    backups = HostBackup(planned.loop.layers, 10**9)
    planned.loop.leave(planned.request, backups)
    # It comes back without its newest entry, which is prefilled, and until then without a query slot.
    plan = planned.request.state.plan_saved(planned.request.state.hooks.saved, at, TOTAL - at, True, 0)
    planned.loop.come_back(planned.request, row=2, backups=backups)
    planned.plans.clear()
    planned.plans[at] = plan
    planned.arrived[at] = planned.request.length - len(planned.request.prompt)  # if it left just compressed
    surplus = planned.surplus()
    assert min(surplus) >= 0
    stayed.run(TOTAL)
    stayed.arrived[at] = planned.arrived[at]
    assert planned.arrived == stayed.arrived and planned.request.done == stayed.request.done


@several_budgets
def test_late_for_want_of_a_query_slot_it_still_holds_no_more_than_planned(budget):
    planned = Planned(budget)
    blocker = planned.loop.ring.acquire(3)
    planned.run(40)
    planned.loop.ring.release(blocker)
    planned.plans.clear()
    assert min(planned.surplus()) >= 0
    assert planned.request.state.totals.late == 1


# --- length limits ----------------------------------------------------------------------------------------------


def options(interval=16, window=4, ratio: float = 4) -> RequestOptions:
    config = RPCConfig(interval=interval, window=window, ratio=ratio, scope="all")
    return RequestOptions.from_custom_params(None, config)


budgets = st.integers(2, 40).flatmap(
    lambda interval: st.tuples(st.just(interval), st.integers(1, 30), st.floats(1, interval, exclude_min=True))
)


@settings(max_examples=150)
@given(budgets, st.integers(0, 200), st.integers(-5, 250))
def test_the_longest_that_fits_is_what_a_search_finds(budget, want, room):
    found = longest(want, room, options(*budget))
    fit = [n for n in range(want + 1) if play_highest(n, budget) <= room]
    assert found == max(fit, default=0)


def play_highest(tokens: int, budget: tuple[int, int, float]) -> int:
    interval, window, ratio = budget
    new = dict(held=0, generated=0, compresses_at=interval + window, interval=interval, window=window)
    return max(play(Plan(**new, budget_step=int(interval / ratio), remaining=tokens, ends=True)))


@pytest.mark.parametrize(
    ("room", "fits"), [(-1, 0), (0, 0), (1, 1), (19, 19), (20, 32), (21, 33), (23, 35), (24, 48), (25, 49), (28, 64)]
)
def test_the_longest_at_the_due_dates(room, fits):
    assert longest(1000, room, options()) == fits
    assert longest(fits, room, options()) == fits
    assert longest(max(0, fits - 1), room, options()) == max(0, fits - 1)


def test_what_fits_is_not_refused():
    peak = budget.peak_held(1000, 16, 4, 4)
    refuse_unfit(1000, prompt=10, room=peak, pool=500, options=options())
    refuse_unfit(0, prompt=10, room=0, pool=10, options=options())
    with pytest.raises(ConfigError):
        refuse_unfit(1000, prompt=10, room=peak - 1, pool=500, options=options())


def test_the_refusal_is_one_sentence_with_the_whole_arithmetic():
    # T 6. Before the 62nd compression 61 * 6 + 4 + 16 are held; 123 are when 15 have come behind the 18th.
    with pytest.raises(ConfigError) as caught:
        refuse_unfit(1000, prompt=37, room=123, pool=176, options=options(16, 4, 2.5))
    assert caught.value.code == "request.max_new_tokens"
    assert caught.value.sentence == (
        "1000 new tokens do not fit: with interval 16, window 4 and ratio 2.5 they hold up to 386 KV entries, and "
        "beside this prompt of 37 tokens the pool of 176 slots has room for 123; ask for at most 303 new tokens, a "
        "higher ratio or a shorter interval, or start the server with more memory"
    )


@given(budgets, st.integers(1, 500), st.integers(0, 300), st.integers(-20, 60))
def test_a_refusal_advises_the_most_that_fits(budget, want, prompt, room):
    pool, own = prompt + 80, options(*budget)
    peak = play_highest(want, budget)
    if peak <= room:
        refuse_unfit(want, prompt, room, pool, own)
        return
    with pytest.raises(ConfigError) as caught:
        refuse_unfit(want, prompt, room, pool, own)
    message = str(caught.value)
    assert f"up to {peak} KV entries" in message and f"has room for {max(0, room)};" in message and "\n" not in message
    advised = int(re.search(r"at most (\d+) new tokens", message)[1])
    assert play_highest(advised, budget) <= max(0, room) < play_highest(advised + 1, budget)
