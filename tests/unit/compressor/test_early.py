"""Compressions before the due date, which move no due date."""

import copy

import pytest

from sglang_rpc.runtime.decision import early_gain
from tests.loops.decode_loop import END, MARKERS, START, WORD, Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back, held_by, not_compressed_early, play_dates, says


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
            assert not_compressed_early(early, loop, ratio * factor)
            continue
        if held - window - keep < window:
            assert not_compressed_early(early, loop, ratio * factor)
            continue
        due = early.state.due(early.state.clock.events)
        c = loop.evict_early(early, ratio * factor)  # which entries are kept: the loop's oracle
        kept_at.add(g)
        assert (c.generated, c.event, c.keep, c.early, c.late) == (g, n, keep, True, False)
        assert early.early == [(g, keep + window)]
        assert held_by(early) == keep + window
        assert early.state.clock.events == n
        assert early.state.due(n) == due == (n + 1) * interval + window > g

        last = due + 2 * interval
        loop.run(last - g)
        later, held = play_dates(keep + window, n, g, last, budget)
        assert early.done == dates + later
        assert held_by(early) == held
        if factor == 1:
            assert held == (n + 3) * int(interval / ratio) + window  # exactly the budget, as if nothing had been
        totals, counters = early.state.totals, loop.compressor.counters
        assert totals.compressions == counters.compressions == len(early.done) + 1
        assert (totals.early, counters.early, totals.late, counters.late) == (1, 1, 0, 0)
        assert totals.evicted == counters.evicted == totals.slots_freed == early.state.evicted
        assert counters.requests_compressed == 1
        assert_all_slots_are_back(loop)
    assert request.early == []
    assert len(request.done) >= 2
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
    assert request.done == []
    assert held_by(request) == 10
    assert request.state.clock.events == 1
    assert request.state.recording.slot is None
    assert not request.state.recording.ahead
    loop.run(20)  # of 26 candidates 26 may be kept
    assert request.done == []
    assert held_by(request) == 30
    loop.run(20)
    assert request.done == [(64, 3, False)]
    assert held_by(request) == 3 * 13 + 4
    assert request.state.totals.late == 0
    assert_all_slots_are_back(loop)


def test_a_request_may_be_compressed_early_again_and_again():
    loop = Loop(config(interval=32, window=4, ratio=4, kernel_size=1))
    request = loop.add()
    loop.run(4)
    for _ in range(128):
        loop.record_ahead(request)
        loop.run(1)
        loop.evict_early(request, 4)
    # Of the first 5 candidates 1 is kept: a window is freed. From then on the same takes 5 or 6 more of them.
    assert request.early[:3] == [(9, 5), (14, 6), (19, 7)]
    assert len(request.early) > 16
    assert request.state.totals.early == len(request.early)
    # On the due dates there may be nothing left, but the budget is never exceeded and no date comes late.
    assert all(g == n * 32 + 4 and not late for g, n, late in request.done)
    assert request.state.clock.events == 4
    assert held_by(request) == 4 * 8 + 4
    assert_all_slots_are_back(loop)


def test_requests_compressed_early_together_keep_what_they_keep_alone():
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
        assert one.early == other.early == [(14, 6)]
        assert one.done == other.done
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
    assert layers[0] != layers[1]
    assert (layers[0][0] == layers[0][1]) == (aggregation == "all")
    assert_all_slots_are_back(loop)


def test_a_window_must_be_recorded_first():
    loop = Loop(config(interval=16, window=4))
    request = loop.add()
    loop.run(10)
    assert not_compressed_early(request, loop, 4)  # no query slot
    loop.record_ahead(request)
    for _ in range(3):
        loop.run(1)
        assert not_compressed_early(request, loop, 4)
    loop.run(1)
    assert loop.evict_early(request, 4) is not None


def test_less_than_a_window_is_not_worth_it():
    loop = Loop(config(interval=32, window=8, ratio=2))
    request = loop.add()
    loop.record_ahead(request)
    loop.run(8 + 14)
    assert not_compressed_early(request, loop, 2)  # 14 candidates, of which 7 would go
    loop.run(1)
    assert early_gain(request.state, 23, 2) == 8
    assert loop.evict_early(request, 2).evicted == 8
    assert not_compressed_early(request, loop, 2)


@pytest.mark.parametrize("how", ["options", "refused"])
def test_a_request_that_is_switched_off_is_not_compressed_early(how):
    loop = Loop(config())
    request = loop.add(enabled=False) if how == "options" else loop.add()
    if how == "refused":
        request.state.refused = "a reason"
    loop.run(10)
    loop.record_ahead(request)
    loop.run(8)
    assert not_compressed_early(request, loop, 4)


def test_an_early_compression_of_a_thought_begins_at_its_start():
    loop = Loop(config(scope="think"), markers=MARKERS)
    request = loop.add(output=says((6, START)))
    loop.run(15)
    loop.record_ahead(request)
    loop.run(4)
    assert loop.evict_early(request, 4).keep == 2  # of the 8 after the start and before the window
    assert request.early == [(19, 7 + 2 + 4)]
    assert all(head[:7] == list(range(7)) for layer in loop.held(request) for head in layer)
    loop.run(60)
    assert request.done == [(27, 1, False), (43, 2, False), (59, 3, False), (75, 4, False)]
    assert all(head[:7] == list(range(7)) for layer in loop.held(request) for head in layer)
    assert_all_slots_are_back(loop)


def test_before_its_first_thought_a_request_is_not_compressed_early():
    loop = Loop(config(scope="think"), markers=MARKERS)
    request = loop.add(output=says())
    loop.record_ahead(request)
    loop.run(30)
    assert not_compressed_early(request, loop, 4)


@pytest.mark.parametrize(("at", "closed"), [(12, True), (13, True), (14, False)])
def test_a_thought_that_has_just_closed_is_not_compressed_early(at, closed):
    loop = Loop(config(scope="think"), markers=MARKERS)
    request = loop.add(prompt=[START], output=says((at, END)))
    loop.run(9)
    loop.record_ahead(request)
    loop.run(5)  # the segment was last read when it was polled
    assert (loop.evict_early(request, 4) is None) is closed
    loop.run(60)
    assert request.done == []
    assert request.state.recording.slot is None
    assert loop.ring.in_use == 0
