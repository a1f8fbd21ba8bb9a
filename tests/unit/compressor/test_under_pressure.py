"""Compression only under memory pressure."""

import pytest

from sglang_rpc.types import NEVER
from tests.loops.decode_loop import END, MARKERS, START, Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back, play_policy, says, set_pressure


def test_without_memory_pressure_a_request_is_polled_once():
    loop = Loop(config(when="pressure"))
    request = loop.add()
    assert not loop.compressor.dates_kept
    assert Loop(config()).compressor.dates_kept
    loop.run(100)
    assert request.done == []
    assert request.polls == [0]
    assert request.state.clock.check_at == NEVER
    assert loop.ring.in_use == 0
    assert request.length == 105


@pytest.mark.parametrize("budget", [(16, 4, 4), (4, 16, 2), (16, 4, 1.2)], ids=str)
@pytest.mark.parametrize("raised", [0, 5, 16, 17, 20, 36, 50])
def test_under_memory_pressure_missed_dates_are_made_up_for_late(budget, raised):
    loop = Loop(config(*budget, when="pressure"))
    request = loop.add()
    loop.run(raised)
    set_pressure(loop, True)
    loop.run(60)
    assert request.done == play_policy(raised, raised + 60, *budget)
    assert request.done
    assert request.state.totals.late == sum(late for _, _, late in request.done)
    assert_all_slots_are_back(loop)


@pytest.mark.parametrize("relieved", [5, 16, 18, 19, 20, 30])
def test_relieved_it_gives_its_slot_back_and_is_polled_no_more(relieved):
    loop = Loop(config(when="pressure"))
    request = loop.add()
    set_pressure(loop, True)
    loop.run(relieved)
    set_pressure(loop, False)
    loop.run(0)
    assert loop.ring.in_use == 0
    assert request.state.recording.slot is None
    assert request.state.clock.check_at == NEVER
    before = list(request.done)
    assert before == [(20, 1, False)][: relieved >= 20]
    loop.run(50)
    assert request.done == before
    assert loop.ring.in_use == 0
    set_pressure(loop, True)
    raised = request.generated
    loop.run(4)
    assert request.done[len(before) :] == [(raised + 4, (raised + 4 - 4) // 16, True)]
    assert_all_slots_are_back(loop)


def test_a_thought_that_closed_unseen_is_not_compressed_under_memory_pressure():
    loop = Loop(config(scope="think", when="pressure"), markers=MARKERS)
    request = loop.add(prompt=[START], output=says((40, END)))
    loop.run(60)
    set_pressure(loop, True)
    loop.run(40)
    assert request.done == []
    assert not request.state.active
    assert loop.ring.in_use == 0


def test_memory_may_run_out_below_the_high_watermark():
    loop = Loop(config(when="pressure"))
    request = loop.add()
    loop.run(40)
    loop.record_ahead(request)
    loop.run(4)
    assert loop.evict_early(request, 4).keep == 10  # 40 candidates
    loop.run(3)
    assert request.done == []
    assert request.state.clock.check_at == NEVER
    assert loop.ring.in_use == 0
    set_pressure(loop, True)
    loop.run(60)
    # At 51, when a window has been recorded, 8 may be kept; at 52, when 12 may, there are 9.
    assert request.done == [(51, 2, True), (68, 4, False), (84, 5, False), (100, 6, False)]
    assert_all_slots_are_back(loop)
