"""Queries recorded before the due date's own window, and the slot that they take."""

import pytest

from tests.loops.decode_loop import Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back, set_pressure


def test_recording_ahead_takes_one_slot_if_there_is_one():
    loop = Loop(config(), slots=1)
    first, second = loop.add(0), loop.add(1)
    loop.run(5)
    assert loop.record_ahead(first)
    assert loop.ring.in_use == 1
    assert first.state.recording.ahead
    assert first.state.recording.since == 5
    loop.run(2)
    assert loop.record_ahead(first)
    assert loop.ring.in_use == 1
    assert first.state.recording.since == 5
    assert not loop.record_ahead(second)
    assert second.state.recording.slot is None
    assert not second.state.recording.ahead
    assert loop.compressor.counters.slot_waits == 0
    loop.compressor.stop_recording_ahead(first.state)
    assert loop.ring.in_use == 0
    assert first.state.recording.slot is None
    assert not first.state.recording.ahead
    assert loop.record_ahead(second)
    loop.compressor.stop_recording_ahead(first.state)  # it has none
    assert loop.ring.in_use == 1
    assert_all_slots_are_back(loop)


@pytest.mark.parametrize("budget", [(16, 4, 4), (5, 8, 2), (16, 8, 1.5)], ids=str)
def test_recording_alone_changes_nothing(budget):
    plain, ahead = Loop(config(*budget)), Loop(config(*budget))
    plain_request, ahead_request = plain.add(), ahead.add()
    for step in range(70):
        if step % 3 == 0:
            ahead.record_ahead(ahead_request)
        if step % 7 == 5:
            ahead.compressor.stop_recording_ahead(ahead_request.state)
        for loop in (plain, ahead):
            loop.run(1)
    assert plain_request.done == ahead_request.done
    assert plain.held(plain_request) == ahead.held(ahead_request)
    assert_all_slots_are_back(ahead)


@pytest.mark.parametrize("ahead_at", [0, 10, 16, 18, 30])
@pytest.mark.parametrize("steps", range(1, 20, 4))
def test_a_slot_given_up_at_any_step_delays_no_due_date(ahead_at, steps):
    loop = Loop(config(interval=16, window=4))
    request = loop.add()
    loop.run(ahead_at)
    loop.record_ahead(request)
    loop.run(steps - 1)
    loop.poll()
    loop._decode(request)
    loop.compressor.stop_recording_ahead(request.state)  # the scheduler does so before it polls
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
    assert not request.state.recording.ahead
    assert request.state.recording.since == 9
    slot = request.state.recording.slot
    loop.compressor.stop_recording_ahead(request.state)
    assert request.state.recording.slot == slot is not None
    loop.run(4)
    assert request.done == [(20, 1, False)]
    assert request.state.recording.slot is None


def test_recording_ahead_ends_with_the_due_date():
    loop = Loop(config(interval=16, window=4))
    request = loop.add()
    loop.record_ahead(request)
    for g in range(1, 50):
        loop.run(1)
        assert (request.state.recording.slot is not None) == (g < 20 or g in range(32, 36) or g in range(48, 52)), g


def test_recording_ahead_ends_with_a_due_date_that_the_row_slept_through():
    loop = Loop(config(interval=16, window=4, when="pressure"))
    request = loop.add()
    loop.run(24)
    loop.record_ahead(request)
    loop.run(6)
    assert request.state.recording.ahead
    set_pressure(loop, True)
    loop.run(0)
    assert request.done == [(30, 1, True)]
    assert request.state.recording.slot is None
    assert not request.state.recording.ahead
    loop.run(10)
    assert request.done == [(30, 1, True), (36, 2, False)]
    assert_all_slots_are_back(loop)


def test_a_freed_row_is_recorded_ahead_no_more():
    loop = Loop(config())
    request = loop.add()
    loop.run(5)
    loop.record_ahead(request)
    loop.retract(request)
    assert not request.state.recording.ahead
    assert loop.ring.in_use == 0
    loop.run(50)
    assert [g for g, _, _ in request.done] == [20, 36, 52]
    assert_all_slots_are_back(loop)


def test_after_an_early_compression_recording_goes_on_until_it_is_stopped():
    loop = Loop(config(interval=64, window=4))
    request = loop.add()
    loop.run(20)
    loop.record_ahead(request)
    loop.run(4)
    assert loop.evict_early(request, 4) is not None
    assert request.state.recording.ahead
    assert loop.ring.in_use == 1
    assert request.state.recording.since == 20
    loop.run(8)
    assert loop.evict_early(request, 4) is not None  # at once: its window is recorded
    loop.compressor.stop_recording_ahead(request.state)
    assert loop.ring.in_use == 0
    loop.run(40)
    assert request.done == [(68, 1, False)]
    assert_all_slots_are_back(loop)


@pytest.mark.parametrize("relieved", range(14, 20))
def test_after_an_early_compression_the_due_date_takes_the_slot_over(relieved):
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
