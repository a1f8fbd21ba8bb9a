"""The orchestrator in a played decode loop. Every compression is checked entry by entry by `decode_loop`'s oracle."""

import copy
import random
import threading

import pytest
import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.runtime.decision import early_gain
from sglang_rpc.runtime.segment import ThinkMarkers, TokenMarker
from sglang_rpc.types import NEVER
from tests.loops.decode_loop import POOL, WORD, Loop, Request

START, END = 900, 901
MARKERS = ThinkMarkers(TokenMarker(START), TokenMarker(END))


def config(interval=16, window=4, ratio=4, scope="all", **others) -> RPCConfig:
    return RPCConfig(interval=interval, window=window, ratio=ratio, scope=scope, **others)


def assert_all_slots_are_back(loop: Loop) -> None:
    for request in list(loop.requests):
        loop.finish(request)
    assert loop.ring.in_use == 0 and not loop.ring.slot_of_row.any()
    assert sorted(loop.free) == list(range(POOL))


# --- due dates --------------------------------------------------------------------------------------------------

BUDGETS = [
    (16, 4, 4),
    (8, 8, 2),
    (4, 16, 2),
    (5, 17, 2.5),
    (10, 3, 2.7),
    (2, 1, 2),
    (3, 1, 1.1),
    (16, 4, 16),
    (7, 5, 3),
]


@pytest.mark.parametrize(("interval", "window", "ratio"), BUDGETS)
def test_compressions_fall_exactly_on_their_due_dates(interval, window, ratio):
    loop = Loop(config(interval, window, ratio))
    request = loop.add()
    loop.run(interval + window - 1)
    assert request.done == [] and request.length == 5 + interval + window - 1
    loop.run(1)
    assert request.done == [(interval + window, 1, False)]
    held = int(interval / ratio) + window
    assert request.length == 5 + held and request.state.evicted == interval - int(interval / ratio)
    loop.run(1)
    assert len(request.done) == (2 if interval == 1 else 1) and request.length == 5 + held + 1

    loop.run(100)
    due = range(interval + window, request.generated + 1, interval)
    assert request.done == [(g, n, False) for n, g in enumerate(due, 1)]
    totals, counters = request.state.totals, loop.compressor.counters
    assert totals.compressions == counters.compressions == len(due)
    assert totals.evicted == counters.evicted == totals.slots_freed == counters.slots_freed == request.state.evicted
    assert (totals.late, counters.late, counters.slot_waits, counters.requests_compressed) == (0, 0, 0, 1)
    assert_all_slots_are_back(loop)


@pytest.mark.parametrize("prompt", [0, 1, 37])
def test_the_prompt_moves_no_due_date_and_is_never_touched(prompt):
    loop = Loop(config())
    request = loop.add(prompt=prompt)
    slots = loop.slots(request)[:prompt].clone()
    before = [(layer.keys[slots].clone(), layer.values[slots].clone()) for layer in loop.layers]
    loop.run(80)
    assert [g for g, _, _ in request.done] == [20, 36, 52, 68]
    assert torch.equal(loop.slots(request)[:prompt], slots)
    for layer, (keys, values) in zip(loop.layers, before, strict=True):
        assert torch.equal(layer.keys[slots], keys) and torch.equal(layer.values[slots], values)


@pytest.mark.parametrize(("interval", "window", "ratio"), BUDGETS)
def test_looking_at_every_step_changes_nothing(interval, window, ratio):
    loops = [Loop(config(interval, window, ratio), check=False) for _ in range(2)]
    sleeping, restless = (loop.add() for loop in loops)
    for _ in range(90):
        restless.state.clock.check_at = 0
        for loop in loops:
            loop.run(1)
    assert restless.done == sleeping.done and restless.done
    assert loops[0].held(sleeping) == loops[1].held(restless)
    assert len(sleeping.polls) <= 1 + 2 * (len(sleeping.done) + 1) < len(restless.polls)


def test_a_query_slot_is_held_for_one_window_only():
    loop = Loop(config(interval=16, window=4))
    loop.add()
    in_use = []
    for _ in range(60):
        loop.run(1)
        in_use.append(loop.ring.in_use)
    # After step g the slot is held while g lies in [due - R, due), due = 20, 36, 52.
    assert [g for g, n in enumerate(in_use, 1) if n] == [16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51]


def test_with_p_below_r_the_slot_stays():
    loop = Loop(config(interval=4, window=16, ratio=2))
    request = loop.add()
    loop.run(60)
    assert [g for g, _, _ in request.done] == [20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]
    assert loop.ring.in_use == 1
    assert_all_slots_are_back(loop)


# --- what is kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("selector", ["official", "paper"])
@pytest.mark.parametrize(("pooling", "kernel"), [("avg", 7), ("avg", 1), ("max", 1), ("avg", 11)])
def test_what_is_kept_equals_the_oracle(aggregation, selector, pooling, kernel):
    settings = config(aggregation=aggregation, selector=selector, pooling=pooling, kernel_size=kernel)
    loop = Loop(settings)
    request = loop.add()
    loop.run(90)
    assert len(request.done) == 5
    layers = loop.held(request)
    assert layers[0] != layers[1]  # each layer chooses for itself
    assert (layers[0][0] == layers[0][1]) == (aggregation == "all")


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 1), (1, 1)])
def test_other_head_layouts_and_a_logit_cap(aggregation, heads, kv_heads):
    loop = Loop(config(aggregation=aggregation), heads=heads, kv_heads=kv_heads, logit_cap=0.8)
    request = loop.add()
    loop.run(60)
    assert len(request.done) == 3


@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_latents_that_are_key_and_value_in_one_move_once(aggregation):
    # One head for all: there is nothing to keep apart.
    loop = Loop(config(aggregation=aggregation), heads=4, kv_heads=1, latent=True)
    request = loop.add()
    loop.run(100)
    assert len(request.done) > 2


@pytest.mark.parametrize("keys_as", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_keys_in_other_dtypes_are_scored_by_what_they_stand_for(keys_as, aggregation):
    loop = Loop(config(aggregation=aggregation), keys_as=keys_as)
    request = loop.add()
    loop.run(60)
    assert len(request.done) == 3


def test_requests_due_in_one_step_are_compressed_together_as_alone():
    together = Loop(config())
    requests = [together.add(row, prompt=3 * row) for row in (0, 1, 3)]
    calls = []
    compress = together.compressor.compress
    together.compressor.compress = lambda cs: (calls.append(len(cs)), compress(cs))
    together.run(60)
    assert calls == [3, 3, 3]
    for request in requests:
        alone = Loop(config())
        same = alone.add(request.row, prompt=3 * request.row)
        alone.run(60)
        assert alone.held(same) == together.held(request)
    assert together.compressor.counters.requests_compressed == 3
    assert_all_slots_are_back(together)


def test_a_window_below_the_servers():
    loop = Loop(config(interval=32, window=16))
    small, own, default = (
        loop.add(row, **options)
        for row, options in ((0, {"window": 3}), (1, {"interval": 12, "window": 5, "ratio": 3}), (2, {}))
    )
    loop.run(110)
    assert [g for g, _, _ in small.done] == [35, 67, 99]
    assert [g for g, _, _ in own.done] == [17, 29, 41, 53, 65, 77, 89, 101]
    assert [g for g, _, _ in default.done] == [48, 80]
    assert_all_slots_are_back(loop)


def test_two_ranks_that_add_their_scores_select_as_one():
    whole = Loop(config(), heads=8, kv_heads=4)
    request = whole.add()
    whole.run(70)

    barrier, given = threading.Barrier(2, timeout=30), {}

    def reduce_for(rank):
        def reduce(scores):
            given[rank] = scores
            barrier.wait()
            total = given[0] + given[1]
            barrier.wait()
            return total

        return reduce

    ranks, errors = [], []
    for rank in range(2):
        share = slice(2 * rank, 2 * rank + 2)
        loop = Loop(config(), heads=8, kv_heads=4, heads_of=share, reduce=reduce_for(rank), check=False)
        ranks.append((loop, loop.add()))

    def play(loop):
        try:
            loop.run(70)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=play, args=(loop,)) for loop, _ in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    for (loop, part), heads in zip(ranks, (slice(0, 2), slice(2, 4)), strict=True):
        assert part.done == request.done and len(part.done) == 4
        assert loop.held(part) == [layer[heads] for layer in whole.held(request)]


# --- too few query slots ----------------------------------------------------------------------------------------


def test_without_a_query_slot_a_compression_waits_and_catches_up():
    loop = Loop(config(interval=16, window=4), slots=1)
    first, second = loop.add(0), loop.add(1)
    loop.run(24)
    # Both want the slot at 16. The first gives it back at 20, after the second has been looked at in that step; the
    # second takes it at 21 and has a full window at 25.
    assert first.done == [(20, 1, False)] and second.done == []
    loop.run(1)
    assert second.done == [(25, 1, True)]
    assert loop.compressor.counters.slot_waits == 5
    assert loop.compressor.counters.late == second.state.totals.late == 1
    loop.run(120)
    assert_all_slots_are_back(loop)


def test_a_long_wait_skips_the_dates_it_missed():
    loop = Loop(config(interval=16, window=4), slots=1)
    blocker = loop.ring.acquire(3)
    request = loop.add(1)
    loop.run(58)
    assert request.done == [] and loop.compressor.counters.slot_waits == 58 - 16 + 1
    loop.ring.release(blocker)
    loop.run(70)
    # 59 is the first look that finds a slot; with a window behind it, at 63, three compressions' budget is due at once.
    assert request.done[0] == (63, 3, True) and request.state.totals.late == 1
    assert request.done[1:] == [(68, 4, False), (84, 5, False), (100, 6, False), (116, 7, False)]


# --- retraction -------------------------------------------------------------------------------------------------


def play_policy(generated: int, upto: int, interval: int, window: int, ratio: float) -> list[tuple[int, int, bool]]:
    """A request whose row is rebuilt at `generated`, by the rules alone: a window of queries first, then all that is
    due at once; a date at which no more candidates are held than the budget allows is passed over."""
    step, done, held = int(interval / ratio), [], generated
    n = 0
    next_check = max(interval + window, generated + window)
    for g in range(generated + 1, upto + 1):
        held += 1
        if g < next_check:
            continue
        late = g != (n + 1) * interval + window
        n = (g - window) // interval
        if n * step < held - window:
            held = n * step + window
            done.append((g, n, late))
        next_check = (n + 1) * interval + window
    return done


@pytest.mark.parametrize(("interval", "window", "ratio"), [(16, 4, 4), (4, 16, 2), (16, 4, 1.2), (8, 8, 2)])
@pytest.mark.parametrize("generated", [1, 10, 17, 19, 20, 21, 35, 36, 37, 50, 64, 77])
def test_after_a_retraction_the_row_catches_up(interval, window, ratio, generated):
    loop = Loop(config(interval, window, ratio))
    request = loop.add()
    loop.run(generated)
    before = list(request.done)
    loop.retract(request)
    assert request.length == 5 + generated and request.state.evicted == 0
    assert all(head == list(range(generated)) for layer in loop.held(request) for head in layer)
    loop.run(70)
    again = request.done[len(before) :]
    assert again == play_policy(generated, generated + 70, interval, window, ratio) and again
    assert request.state.totals.compressions == len(before) + len(again)
    assert request.state.totals.late == sum(late for _, _, late in again)
    assert_all_slots_are_back(loop)


def test_a_date_with_fewer_candidates_than_budget_is_passed_over():
    # P 16, R 4, c 1.2: T 13. Rebuilt at 30, caught up at 34 to 13 candidates. At 36, where 26 may be kept, 15 are held;
    # each date adds 16 to what is held and 13 to the budget: the sixth, at 100, is the first with more than it keeps.
    loop = Loop(config(16, 4, 1.2))
    request = loop.add()
    loop.run(30)
    assert request.done == [(20, 1, False)]
    loop.retract(request)
    loop.run(6)
    assert request.done[1:] == [(34, 1, True)]
    assert request.state.clock.events == 2 and request.length == 5 + 13 + 4 + 2
    loop.run(63)
    assert len(request.done) == 2 and request.length == 5 + 13 + 4 + 65
    loop.run(1)
    assert request.done[2:] == [(100, 6, False)] and request.length == 5 + 6 * 13 + 4
    assert request.state.totals.compressions == 3
    assert_all_slots_are_back(loop)


def test_a_retraction_within_a_window_waits_for_a_whole_one():
    loop = Loop(config(interval=16, window=8))
    request = loop.add()
    loop.run(20)
    assert loop.ring.in_use == 1
    loop.retract(request)
    assert loop.ring.in_use == 0
    loop.run(7)
    assert request.done == []  # 24 was due, with queries of only four steps
    loop.run(1)
    assert request.done == [(28, 1, True)]


def test_a_retraction_before_anything_is_due_is_not_noticed():
    loop = Loop(config())
    request = loop.add()
    loop.run(12)
    loop.retract(request)
    loop.run(40)
    assert request.done == [(20, 1, False), (36, 2, False), (52, 3, False)]


def test_a_state_cannot_be_reset_while_it_holds_a_slot():
    loop = Loop(config())
    request = loop.add()
    loop.run(18)
    with pytest.raises(AssertionError, match="given back"):
        request.state.reset()


# --- before the due date ----------------------------------------------------------------------------------------


def play_dates(held: int, events: int, after: int, upto: int, budget: tuple[int, int, float]):
    """What the due dates behind `after` make of `held` entries: (compressions, entries held at `upto`)."""
    interval, window, ratio = budget
    done = []
    for g in range(after + 1, upto + 1):
        held += 1
        if g == (events + 1) * interval + window:
            events += 1
            keep = events * int(interval / ratio)
            if keep < held - window:
                held = keep + window
                done.append((g, events, False))
    return done, held


def held_by(request: Request) -> int:
    """Entries behind the prompt."""
    return request.length - len(request.prompt)


def gives_no_way(request: Request, loop: Loop, ratio: float) -> bool:
    """If so, nothing of the request's row and record may change."""
    before, held, given = copy.deepcopy(vars(request.state)), loop.held(request), list(request.early)
    if loop.evict_early(request, ratio) is not None:
        return False
    segment = {"segment": request.state.segment}  # reads on
    assert vars(request.state) == before | segment and loop.held(request) == held and request.early == given
    return True


@pytest.mark.parametrize(
    ("budget", "factor"),
    [((16, 4, 4), 1), ((16, 4, 4), 2), ((20, 4, 1.5), 1), ((20, 4, 1.5), 4), ((8, 8, 2), 4), ((12, 2, 12), 1)],
    ids=str,
)
def test_an_early_compression_at_any_step_moves_no_due_date(budget, factor):
    interval, window, ratio = budget
    steady = Loop(config(*budget, kernel_size=1))  # of so few candidates, pooling would make equals
    request, kept_at = steady.add(output=[WORD] * 100), set()
    for recorded_from in range(2 * interval + 2 * window):
        steady.run(min(1, recorded_from))
        loop = copy.deepcopy(steady)
        (early,) = loop.requests
        assert loop.record_ahead(early)
        loop.run(window)
        g, n, held, dates = recorded_from + window, early.state.clock.events, held_by(early), list(early.done)
        since = g - window - n * interval
        keep = max(1, n * int(interval / (ratio * factor)) + int(since / (ratio * factor)))
        if early.state.recording.slot is None:
            assert g - window < n * interval + window <= g  # given back in between, on the due date
            assert gives_no_way(early, loop, ratio * factor)
            continue
        if held - window - keep < window:
            assert gives_no_way(early, loop, ratio * factor)
            continue
        due = early.state.due(early.state.clock.events)
        c = loop.evict_early(early, ratio * factor)  # which entries are kept: the loop's oracle
        kept_at.add(g)
        assert (c.generated, c.event, c.keep, c.early, c.late) == (g, n, keep, True, False)
        assert early.early == [(g, keep + window)] and held_by(early) == keep + window
        assert early.state.clock.events == n and early.state.due(n) == due == (n + 1) * interval + window > g

        last = due + 2 * interval
        loop.run(last - g)
        later, held = play_dates(keep + window, n, g, last, budget)
        assert early.done == dates + later and held_by(early) == held
        if factor == 1:
            assert held == (n + 3) * int(interval / ratio) + window  # exactly the budget, as if nothing had been
        totals, counters = early.state.totals, loop.compressor.counters
        assert totals.compressions == counters.compressions == len(early.done) + 1
        assert (totals.early, counters.early, totals.late, counters.late) == (1, 1, 0, 0)
        assert totals.evicted == counters.evicted == totals.slots_freed == early.state.evicted
        assert counters.requests_compressed == 1
        assert_all_slots_are_back(loop)
    assert request.early == [] and len(request.done) >= 2
    assert len(kept_at) > interval / 2 or interval == window


def test_a_due_date_with_nothing_left_to_evict_is_skipped():
    # c 1.5: 13 of 20 are to be kept at 24. At twelve times that, 15 entries are left 4 of at 19, and 5 come: 5 <= 13.
    loop = Loop(config(20, 4, 1.5))
    request = loop.add()
    loop.run(15)
    loop.record_ahead(request)
    loop.run(4)
    assert loop.evict_early(request, 18).keep == 1
    assert request.early == [(19, 5)]
    loop.run(5)
    assert request.done == [] and held_by(request) == 10 and request.state.clock.events == 1
    assert request.state.recording.slot is None and not request.state.recording.ahead
    loop.run(20)  # of 26 candidates 26 may be kept
    assert request.done == [] and held_by(request) == 30
    loop.run(20)
    assert request.done == [(64, 3, False)] and held_by(request) == 3 * 13 + 4
    assert request.state.totals.late == 0
    assert_all_slots_are_back(loop)


def test_it_may_give_way_again_and_again():
    loop = Loop(config(interval=32, window=4, ratio=4, kernel_size=1))
    request = loop.add()
    loop.run(4)
    for _ in range(128):
        loop.record_ahead(request)
        loop.run(1)
        loop.evict_early(request, 4)
    # Of the first 5 candidates 1 is kept: a window is freed. From then on the same takes 5 or 6 more of them.
    assert request.early[:3] == [(9, 5), (14, 6), (19, 7)]
    assert len(request.early) > 16 and request.state.totals.early == len(request.early)
    # On the due dates there may be nothing left, but the budget is never exceeded and no date comes late.
    assert all(g == n * 32 + 4 and not late for g, n, late in request.done)
    assert request.state.clock.events == 4 and held_by(request) == 4 * 8 + 4
    assert_all_slots_are_back(loop)


def test_requests_that_give_way_together_do_so_as_alone():
    rows = (0, 1, 3)
    loops = [Loop(config(kernel_size=1)) for _ in range(4)]
    together = [loops[0].add(row, prompt=3 * row) for row in rows]
    alone = [loop.add(row, prompt=3 * row) for loop, row in zip(loops[1:], rows, strict=True)]
    for loop in loops:
        loop.run(10)
        assert all(loop.record_ahead(request) for request in loop.requests)
        loop.run(4)
        chosen = [(r, loop.compressor.early(r.state, r.row, r.prompt, r.generated, r.output, 4)) for r in loop.requests]
        loop._compress(chosen)
        loop.run(30)
    for one, other, loop in zip(together, alone, loops[1:], strict=True):
        assert one.early == other.early == [(14, 6)] and one.done == other.done
        assert loops[0].held(one) == loop.held(other)
    for loop in loops:
        assert_all_slots_are_back(loop)


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("selector", ["official", "paper"])
def test_early_selections_equal_the_oracle_too(aggregation, selector):
    loop = Loop(config(interval=80, aggregation=aggregation, selector=selector))
    request = loop.add()
    loop.run(50)
    loop.record_ahead(request)
    for _ in range(3):
        loop.run(10)
        loop.evict_early(request, 4)
    assert request.early == [(60, 18), (70, 20), (80, 23)]
    layers = loop.held(request)
    assert layers[0] != layers[1] and (layers[0][0] == layers[0][1]) == (aggregation == "all")
    assert_all_slots_are_back(loop)


def test_a_window_must_be_recorded_first():
    loop = Loop(config(interval=16, window=4))
    request = loop.add()
    loop.run(10)
    assert gives_no_way(request, loop, 4)  # no query slot
    loop.record_ahead(request)
    for _ in range(3):
        loop.run(1)
        assert gives_no_way(request, loop, 4)
    loop.run(1)
    assert loop.evict_early(request, 4) is not None


def test_less_than_a_window_is_not_worth_it():
    loop = Loop(config(interval=32, window=8, ratio=2))
    request = loop.add()
    loop.record_ahead(request)
    loop.run(8 + 14)
    assert gives_no_way(request, loop, 2)  # 14 candidates, of which 7 would go
    loop.run(1)
    assert early_gain(request.state, 23, 2) == 8
    assert loop.evict_early(request, 2).evicted == 8
    assert gives_no_way(request, loop, 2)


@pytest.mark.parametrize("how", ["options", "refused"])
def test_a_request_that_is_switched_off_gives_no_way(how):
    loop = Loop(config())
    request = loop.add(enabled=False) if how == "options" else loop.add()
    if how == "refused":
        request.state.refused = "a reason"
    loop.run(10)
    loop.record_ahead(request)
    loop.run(8)
    assert gives_no_way(request, loop, 4)


def test_a_thought_gives_way_from_its_start():
    loop = Loop(config(scope="think"), markers=MARKERS)
    request = loop.add(output=says((6, START)))
    loop.run(15)
    loop.record_ahead(request)
    loop.run(4)
    assert loop.evict_early(request, 4).keep == 2  # of the 8 behind the start and before the window
    assert request.early == [(19, 7 + 2 + 4)]
    assert all(head[:7] == list(range(7)) for layer in loop.held(request) for head in layer)
    loop.run(60)
    assert request.done == [(27, 1, False), (43, 2, False), (59, 3, False), (75, 4, False)]
    assert all(head[:7] == list(range(7)) for layer in loop.held(request) for head in layer)
    assert_all_slots_are_back(loop)


def test_what_has_not_begun_to_think_gives_no_way():
    loop = Loop(config(scope="think"), markers=MARKERS)
    request = loop.add(output=says())
    loop.record_ahead(request)
    loop.run(30)
    assert gives_no_way(request, loop, 4)


@pytest.mark.parametrize(("at", "closed"), [(12, True), (13, True), (14, False)])
def test_a_thought_that_has_just_closed_gives_no_way(at, closed):
    loop = Loop(config(scope="think"), markers=MARKERS)
    request = loop.add(prompt=[START], output=says((at, END)))
    loop.run(9)
    loop.record_ahead(request)
    loop.run(5)  # the segment was last read when it was looked at
    assert (loop.evict_early(request, 4) is None) is closed
    loop.run(60)
    assert request.done == [] and request.state.recording.slot is None and loop.ring.in_use == 0


# --- recorded ahead of time -------------------------------------------------------------------------------------


def test_arming_takes_one_slot_if_there_is_one():
    loop = Loop(config(), slots=1)
    first, second = loop.add(0), loop.add(1)
    loop.run(5)
    assert loop.record_ahead(first) and loop.ring.in_use == 1 and first.state.recording.ahead
    assert first.state.recording.since == 5
    loop.run(2)
    assert (
        loop.record_ahead(first) and loop.ring.in_use == 1 and first.state.recording.since == 5
    )  # it goes on recording
    assert not loop.record_ahead(second) and second.state.recording.slot is None and not second.state.recording.ahead
    assert loop.compressor.counters.slot_waits == 0
    loop.compressor.stop_recording_ahead(first.state)
    assert loop.ring.in_use == 0 and first.state.recording.slot is None and not first.state.recording.ahead
    assert loop.record_ahead(second)
    loop.compressor.stop_recording_ahead(first.state)  # it has none
    assert loop.ring.in_use == 1
    assert_all_slots_are_back(loop)


@pytest.mark.parametrize("budget", [(16, 4, 4), (5, 8, 2), (16, 8, 1.5)], ids=str)
def test_recording_alone_changes_nothing(budget):
    plain, ahead = Loop(config(*budget)), Loop(config(*budget))
    asleep, awake = plain.add(), ahead.add()
    for step in range(70):
        if step % 3 == 0:
            ahead.record_ahead(awake)
        if step % 7 == 5:
            ahead.compressor.stop_recording_ahead(awake.state)
        for loop in (plain, ahead):
            loop.run(1)
    assert asleep.done == awake.done and plain.held(asleep) == ahead.held(awake)
    assert_all_slots_are_back(ahead)


@pytest.mark.parametrize("armed_at", [0, 10, 16, 18, 30])
@pytest.mark.parametrize("steps", range(1, 20, 4))
def test_a_slot_given_up_at_any_step_delays_no_due_date(armed_at, steps):
    loop = Loop(config(interval=16, window=4))
    request = loop.add()
    loop.run(armed_at)
    loop.record_ahead(request)
    loop.run(steps - 1)
    loop.poll()
    loop._decode(request)
    loop.compressor.stop_recording_ahead(request.state)  # the scheduler does so before it looks
    loop.run(60 - request.generated)
    assert request.done == [(20, 1, False), (36, 2, False), (52, 3, False)]
    assert_all_slots_are_back(loop)


def test_from_a_window_before_the_date_the_slot_is_the_dates():
    loop = Loop(config(interval=16, window=4))
    request = loop.add()
    loop.run(9)
    loop.record_ahead(request)
    loop.run(6)
    assert request.state.recording.ahead
    loop.run(1)  # 16: the date's own window begins
    assert not request.state.recording.ahead and request.state.recording.since == 9
    slot = request.state.recording.slot
    loop.compressor.stop_recording_ahead(request.state)
    assert request.state.recording.slot == slot is not None
    loop.run(4)
    assert request.done == [(20, 1, False)] and request.state.recording.slot is None


def test_the_armed_do_not_keep_their_slot_behind_a_due_date():
    loop = Loop(config(interval=16, window=4))
    request = loop.add()
    loop.record_ahead(request)
    for g in range(1, 50):
        loop.run(1)
        assert (request.state.recording.slot is not None) == (g < 20 or g in range(32, 36) or g in range(48, 52)), g


def test_an_armed_row_that_is_freed_is_armed_no_more():
    loop = Loop(config())
    request = loop.add()
    loop.run(5)
    loop.record_ahead(request)
    loop.retract(request)
    assert not request.state.recording.ahead and loop.ring.in_use == 0
    loop.run(50)
    assert [g for g, _, _ in request.done] == [20, 36, 52]
    assert_all_slots_are_back(loop)


def test_after_giving_way_it_goes_on_recording_until_it_is_told_not_to():
    loop = Loop(config(interval=64, window=4))
    request = loop.add()
    loop.run(20)
    loop.record_ahead(request)
    loop.run(4)
    assert loop.evict_early(request, 4) is not None
    assert request.state.recording.ahead and loop.ring.in_use == 1 and request.state.recording.since == 20
    loop.run(8)
    assert loop.evict_early(request, 4) is not None  # at once: its window is recorded
    loop.compressor.stop_recording_ahead(request.state)
    assert loop.ring.in_use == 0
    loop.run(40)
    assert request.done == [(68, 1, False)]
    assert_all_slots_are_back(loop)


@pytest.mark.parametrize("relieved", range(14, 20))
def test_after_giving_way_the_due_date_takes_the_slot_over(relieved):
    loop = Loop(config(interval=16, window=4))
    request = loop.add()
    loop.run(6)
    loop.record_ahead(request)
    loop.run(7)
    assert loop.evict_early(request, 4) is not None  # at 13; the date's own window begins at 16
    loop.run(relieved - 13)
    assert request.state.recording.ahead is (relieved < 16)
    loop.compressor.stop_recording_ahead(request.state)
    loop.run(36 - relieved)
    assert request.done == [(20, 1, False), (36, 2, False)]
    assert_all_slots_are_back(loop)


# --- only under pressure ----------------------------------------------------------------------------------------


def press(loop: Loop, under_pressure: bool) -> None:
    """What the scheduler does when a watermark is crossed."""
    loop.compressor.dates_kept = under_pressure
    for request in loop.requests:
        request.state.clock.check_at = 0


def test_without_pressure_nobody_is_looked_at_twice():
    loop = Loop(config(when="pressure"))
    request = loop.add()
    assert not loop.compressor.dates_kept and Loop(config()).compressor.dates_kept
    loop.run(100)
    assert request.done == [] and request.polls == [0] and request.state.clock.check_at == NEVER
    assert loop.ring.in_use == 0 and request.length == 105


@pytest.mark.parametrize("budget", [(16, 4, 4), (4, 16, 2), (16, 4, 1.2)], ids=str)
@pytest.mark.parametrize("woken", [0, 5, 16, 17, 20, 36, 50])
def test_woken_it_makes_up_for_what_it_missed(budget, woken):
    loop = Loop(config(*budget, when="pressure"))
    request = loop.add()
    loop.run(woken)
    press(loop, True)
    loop.run(60)
    assert request.done == play_policy(woken, woken + 60, *budget) and request.done
    assert request.state.totals.late == sum(late for _, _, late in request.done)
    assert_all_slots_are_back(loop)


@pytest.mark.parametrize("relieved", [5, 16, 18, 19, 20, 30])
def test_relieved_it_gives_its_slot_back_and_sleeps(relieved):
    loop = Loop(config(when="pressure"))
    request = loop.add()
    press(loop, True)
    loop.run(relieved)
    press(loop, False)
    loop.run(0)
    assert loop.ring.in_use == 0 and request.state.recording.slot is None and request.state.clock.check_at == NEVER
    before = list(request.done)
    assert before == [(20, 1, False)][: relieved >= 20]
    loop.run(50)
    assert request.done == before and loop.ring.in_use == 0
    press(loop, True)
    woken = request.generated
    loop.run(4)
    assert request.done[len(before) :] == [(woken + 4, (woken + 4 - 4) // 16, True)]
    assert_all_slots_are_back(loop)


def test_a_thought_that_closed_unseen_is_not_compressed_when_woken():
    loop = Loop(config(scope="think", when="pressure"), markers=MARKERS)
    request = loop.add(prompt=[START], output=says((40, END)))
    loop.run(60)
    press(loop, True)
    loop.run(40)
    assert request.done == [] and not request.state.active and loop.ring.in_use == 0


def test_memory_may_run_out_before_anybody_counts_as_pressed():
    loop = Loop(config(when="pressure"))
    request = loop.add()
    loop.run(40)
    loop.record_ahead(request)
    loop.run(4)
    assert loop.evict_early(request, 4).keep == 10  # 40 candidates
    loop.run(3)
    assert request.done == [] and request.state.clock.check_at == NEVER and loop.ring.in_use == 0
    press(loop, True)
    loop.run(60)
    # At 51, when a window has been recorded, 8 may be kept; at 52, when 12 may, there are 9.
    assert request.done == [(51, 2, True), (68, 4, False), (84, 5, False), (100, 6, False)]
    assert_all_slots_are_back(loop)


# --- all of it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_the_oracle_holds_and_every_slot_comes_back(seed):
    rng = random.Random(seed)
    interval, window, slots = rng.randint(2, 20), rng.randint(1, 10), rng.randint(1, 4)
    ratio, scope = rng.uniform(1.05, interval), rng.choice(["all", "think"])
    settings = config(interval, window, ratio, scope, kernel_size=1, when=rng.choice(["always", "pressure"]))
    loop = Loop(settings, slots=slots, markers=MARKERS)
    backups = HostBackup(loop.layers, 10**9)
    for row in (0, 1):
        tokens = rng.choices([WORD, START, END], [40, 1, 1], k=200)
        loop.add(row, [rng.choice([WORD, START]) for _ in range(rng.randint(0, 6))], tokens)
    for _ in range(60):
        loop.poll()
        for request in list(loop.requests):
            held, rows = loop.held(request), {r.row for r in loop.requests}
            actions = ["nothing", "record_ahead", "evict_early", "stop_recording_ahead", "retract", "leave"]
            match rng.choices(actions, [60, 15, 15, 3, 2, 5])[0]:
                case "record_ahead":
                    loop.record_ahead(request)
                case "evict_early":
                    loop.evict_early(request, ratio * rng.choice([1, 2, 4]))
                case "stop_recording_ahead":
                    loop.compressor.stop_recording_ahead(request.state)
                case "retract":
                    loop.retract(request)
                case "leave" if request.generated:
                    loop.leave(request, backups)
                    loop.come_back(request, rng.choice(sorted({0, 1, 2, 3} - rows)), backups)
                    assert loop.held(request) == held
        if settings.when == "pressure" and rng.random() < 0.1:
            press(loop, not loop.compressor.dates_kept)
        for request in loop.requests:
            loop._decode(request)
        assert loop.ring.in_use == sum(r.state.recording.slot is not None for r in loop.requests)
        assert all(r.state.recording.slot is not None for r in loop.requests if r.state.recording.ahead)
    assert backups.used == 0
    assert_all_slots_are_back(loop)


# --- requests that are never compressed -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["options", "refused"])
def test_a_request_that_is_switched_off_is_looked_at_once(how):
    loop = Loop(config())
    request = loop.add(enabled=False) if how == "options" else loop.add()
    if how == "refused":
        request.state.refused = "a reason"
    loop.run(100)
    assert request.done == [] and request.polls == [0] and request.state.clock.check_at >= NEVER // 2
    assert loop.ring.in_use == 0 and request.length == 105


# --- scope think ------------------------------------------------------------------------------------------------


def thinking(**others) -> Loop:
    return Loop(config(scope="think", **others), markers=MARKERS)


def says(*marks: tuple[int, int]) -> list[int]:
    """A long output with these tokens at these positions."""
    output = [WORD] * 300
    for position, token in marks:
        output[position] = token
    return output


def test_a_thought_opened_in_the_prompt_is_compressed_from_its_first_token():
    loop = thinking()
    request = loop.add(prompt=[WORD, START], output=says())
    loop.run(60)
    assert [g for g, _, _ in request.done] == [20, 36, 52]


@pytest.mark.parametrize("at", [0, 3, 15, 16, 17, 31, 40])
def test_a_thought_opened_late_is_compressed_from_there(at):
    loop = thinking()
    request = loop.add(output=says((at, START)))
    loop.run(120)
    start = at + 1
    assert request.state.start == start
    due = list(range(start + 20, 121, 16))
    assert request.done == [(g, n, False) for n, g in enumerate(due, 1)]
    assert all(head[:start] == list(range(start)) for layer in loop.held(request) for head in layer)
    assert_all_slots_are_back(loop)


@pytest.mark.parametrize("at", [0, 1, 10, 16, 18, 19])
def test_a_thought_closed_before_its_first_date_is_left_whole(at):
    loop = thinking()
    request = loop.add(prompt=[START], output=says((at, END)))
    loop.run(60)
    assert request.done == [] and request.length == 61
    assert loop.ring.in_use == 0 and not request.state.active


def test_a_thought_closed_by_the_token_after_the_date_is_compressed_once():
    loop = thinking()
    request = loop.add(prompt=[START], output=says((20, END)))
    loop.run(60)
    assert [g for g, _, _ in request.done] == [20]


@pytest.mark.parametrize("at", [21, 30, 33, 34, 35])
def test_a_thought_closed_between_two_dates_is_compressed_no_more(at):
    loop = thinking()
    request = loop.add(prompt=[START], output=says((at, END), (at + 2, START)))
    loop.run(90)
    assert request.done == [(20, 1, False)]
    assert loop.ring.in_use == 0 and request.state.recording.slot is None
    assert request.length == 1 + 90 - request.state.evicted


def test_a_closed_thought_stays_whole_after_a_retraction():
    loop = thinking()
    request = loop.add(prompt=[START], output=says((40, END)))
    loop.run(60)
    assert [g for g, _, _ in request.done] == [20, 36]
    loop.retract(request)
    loop.run(60)
    assert len(request.done) == 2 and request.length == 1 + 120


def test_an_open_thought_catches_up_after_a_retraction_behind_its_start():
    loop = thinking()
    request = loop.add(output=says((10, START)))
    loop.run(50)
    assert [g for g, _, _ in request.done] == [31, 47]
    loop.retract(request)
    loop.run(20)
    assert request.done[2:] == [(54, 2, True), (63, 3, False)]
    assert all(head[:11] == list(range(11)) for layer in loop.held(request) for head in layer)


def test_a_request_that_never_thinks_never_takes_a_slot():
    loop = thinking()
    request = loop.add(output=says())
    for _ in range(100):
        loop.run(1)
        assert loop.ring.in_use == 0
    assert request.done == [] and len(request.polls) <= 8


def test_scope_all_ignores_the_markers():
    loop = thinking()
    request = loop.add(output=says((3, START), (5, END)), scope="all")
    loop.run(60)
    assert [g for g, _, _ in request.done] == [20, 36, 52] and request.state.segment is None
