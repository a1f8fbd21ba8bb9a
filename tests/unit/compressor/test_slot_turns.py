"""Too few query slots: who gets one, and that nobody waits forever."""

import itertools

import pytest

from tests.loops.decode_loop import Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back


def crowd(slots: int, requests: int, **settings) -> Loop:
    loop = Loop(config(**settings), slots=slots, rows=requests, check=False)
    for row in range(requests):
        loop.add(row, prompt=1)
    return loop


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_every_request_is_compressed_in_turn(slots):
    # Eight requests of which each needs a slot for 5 of 16 steps: less than three slots are too few.
    loop = crowd(slots, 8, interval=16, window=4)
    loop.run(130)
    longest_wait = (8 - 1) // slots * 5  # all others first
    for request in loop.requests:
        dates = [0, *(generated for generated, _, _ in request.done), 130]
        assert all(b - a <= 4 + 16 + longest_wait for a, b in itertools.pairwise(dates)), dates
    assert_all_slots_are_back(loop)


def test_waves_follow_each_other_in_the_order_of_asking():
    loop = crowd(2, 6, interval=64, window=4)
    loop.run(84)
    # All ask at 64. A slot given back in a step is taken in the next: a wave takes 5 steps.
    assert [[g for g, _, _ in request.done] for request in loop.requests] == [[68]] * 2 + [[73]] * 2 + [[78]] * 2
    assert loop.compressor.counters.slot_waits == 4 * 5 + 2 * 5
    assert loop.compressor.recorder.waiting == 0


def test_a_request_that_asks_again_at_once_lets_the_others_go_first():
    # The next window begins one step after each date: without turns the first would keep the slot forever.
    loop = crowd(1, 3, interval=5, window=4, ratio=2)
    loop.run(90)
    times = [len(request.done) for request in loop.requests]
    assert min(times) >= 90 // (3 * 5) - 1
    assert max(times) - min(times) <= 1


def test_who_stops_waiting_leaves_the_queue():
    loop = crowd(1, 4, interval=16, window=4)
    loop.run(17)
    assert loop.compressor.recorder.waiting == 3
    loop.finish(loop.requests[1])
    loop.retract(loop.requests[1])
    assert loop.compressor.recorder.waiting == 1
    loop.run(40)
    for request in loop.requests:
        assert request.done, request.row
    for request in list(loop.requests):
        loop.finish(request)
    assert loop.compressor.recorder.waiting == 0
    assert loop.ring.in_use == 0


def test_nothing_is_recorded_ahead_while_a_due_date_waits():
    loop = crowd(1, 3, interval=64, window=4)
    late = loop.requests[0]
    loop.run(66)
    loop.finish(late)  # the slot is free, and its turn is the second's
    newcomer = loop.add(0, prompt=1)
    loop._decode(newcomer)
    assert not loop.record_ahead(newcomer)
    loop.run(1)
    assert loop.requests[0].state.recording.slot is not None


def test_a_request_that_comes_back_gets_the_next_slot_though_intervals_are_below_the_window():
    loop = crowd(1, 1, interval=4, window=8, ratio=2)
    loop.run(30)
    assert loop.ring.free == 0  # the next date is always within the window
    loop.compressor.recorder.keeps_free = True
    while not loop.ring.free:
        loop.run(1)
        assert loop.requests[0].generated <= 34
    loop.run(3)
    assert loop.ring.free == 1  # nobody takes it, not even the first in turn
    loop.compressor.recorder.keeps_free = False
    loop.run(1)
    assert loop.ring.free == 0
