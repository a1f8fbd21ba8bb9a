"""A row that is freed and rebuilt from its tokens."""

import pytest

from tests.loops.decode_loop import Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back, play_policy


@pytest.mark.parametrize(("interval", "window", "ratio"), [(16, 4, 4), (4, 16, 2), (16, 4, 1.2), (8, 8, 2)])
@pytest.mark.parametrize("generated", [1, 10, 17, 19, 20, 21, 35, 36, 37, 50, 64, 77])
def test_after_a_retraction_the_row_is_compressed_late(interval, window, ratio, generated):
    loop = Loop(config(interval, window, ratio))
    request = loop.add()
    loop.run(generated)
    before = list(request.done)
    loop.retract(request)
    assert request.length == 5 + generated
    assert request.state.evicted == 0
    assert all(head == list(range(generated)) for layer in loop.held(request) for head in layer)
    loop.run(70)
    again = request.done[len(before) :]
    assert again == play_policy(generated, generated + 70, interval, window, ratio)
    assert again
    assert request.state.totals.compressions == len(before) + len(again)
    assert request.state.totals.late == sum(late for _, _, late in again)
    assert_all_slots_are_back(loop)


def test_a_date_with_fewer_candidates_than_budget_is_passed_over():
    # P 16, R 4, c 1.2: T 13. Rebuilt at 30, compressed late at 34 to 13 candidates. At 36, where 26 may be kept, 15 are
    # held. Each date adds 16 to these and 13 to the budget: the sixth, at 100, is the first with more than it keeps.
    loop = Loop(config(16, 4, 1.2))
    request = loop.add()
    loop.run(30)
    assert request.done == [(20, 1, False)]
    loop.retract(request)
    loop.run(6)
    assert request.done[1:] == [(34, 1, True)]
    assert request.state.clock.events == 2
    assert request.length == 5 + 13 + 4 + 2
    loop.run(63)
    assert len(request.done) == 2
    assert request.length == 5 + 13 + 4 + 65
    loop.run(1)
    assert request.done[2:] == [(100, 6, False)]
    assert request.length == 5 + 6 * 13 + 4
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
