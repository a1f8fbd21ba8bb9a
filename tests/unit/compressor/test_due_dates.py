"""Due dates: compressions fall on them exactly, and late where no query slot was free."""

import pytest
import torch

from tests.loops.decode_loop import Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back

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
    assert request.done == []
    assert request.length == 5 + interval + window - 1
    loop.run(1)
    assert request.done == [(interval + window, 1, False)]
    held = int(interval / ratio) + window
    assert request.length == 5 + held
    assert request.state.evicted == interval - int(interval / ratio)
    loop.run(1)
    assert len(request.done) == (2 if interval == 1 else 1)
    assert request.length == 5 + held + 1

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
        assert torch.equal(layer.keys[slots], keys)
        assert torch.equal(layer.values[slots], values)


@pytest.mark.parametrize(("interval", "window", "ratio"), BUDGETS)
def test_polling_at_every_step_changes_nothing(interval, window, ratio):
    loops = [Loop(config(interval, window, ratio), check=False) for _ in range(2)]
    at_its_dates, at_every_step = (loop.add() for loop in loops)
    for _ in range(90):
        at_every_step.state.clock.check_at = 0
        for loop in loops:
            loop.run(1)
    assert at_every_step.done == at_its_dates.done
    assert at_every_step.done
    assert loops[0].held(at_its_dates) == loops[1].held(at_every_step)
    assert len(at_its_dates.polls) <= 1 + 2 * (len(at_its_dates.done) + 1) < len(at_every_step.polls)


def test_a_query_slot_is_held_for_one_window_only():
    loop = Loop(config(interval=16, window=4))
    loop.add()
    in_use = []
    for _ in range(60):
        loop.run(1)
        in_use.append(loop.ring.in_use)
    # After step g the slot is held while g lies in [due - R, due), due = 20, 36, 52.
    assert [g for g, n in enumerate(in_use, 1) if n] == [16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51]


def test_with_an_interval_below_the_window_the_query_slot_stays():
    loop = Loop(config(interval=4, window=16, ratio=2))
    request = loop.add()
    loop.run(60)
    assert [g for g, _, _ in request.done] == [20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]
    assert loop.ring.in_use == 1
    assert_all_slots_are_back(loop)


def test_without_a_query_slot_a_compression_is_late():
    loop = Loop(config(interval=16, window=4), slots=1)
    first, second = loop.add(0), loop.add(1)
    loop.run(24)
    # Both want the slot at 16. The first gives it back at 20, after the second has been polled in that step; the
    # second takes it at 21 and has a full window at 25.
    assert first.done == [(20, 1, False)]
    assert second.done == []
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
    assert request.done == []
    assert loop.compressor.counters.slot_waits == 58 - 16 + 1
    loop.ring.release(blocker)
    loop.run(70)
    # 59 is the first poll that gets a slot; with a window recorded, at 63, three compressions' budget is due at once.
    assert request.done[0] == (63, 3, True)
    assert request.state.totals.late == 1
    assert request.done[1:] == [(68, 4, False), (84, 5, False), (100, 6, False), (116, 7, False)]
