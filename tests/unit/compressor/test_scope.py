"""Which part of a request is compressed: none, its thoughts, or everything it generates."""

import pytest

from sglang_rpc.types import NEVER
from tests.loops.decode_loop import END, START, WORD, Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back, says, thinking


@pytest.mark.parametrize("how", ["options", "refused"])
def test_a_request_that_is_switched_off_is_polled_once(how):
    loop = Loop(config())
    request = loop.add(enabled=False) if how == "options" else loop.add()
    if how == "refused":
        request.state.refused = "a reason"
    loop.run(100)
    assert request.done == []
    assert request.polls == [0]
    assert request.state.clock.check_at >= NEVER // 2
    assert loop.ring.in_use == 0
    assert request.length == 105


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
    assert request.done == []
    assert request.length == 61
    assert loop.ring.in_use == 0
    assert not request.state.active


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
    assert loop.ring.in_use == 0
    assert request.state.recording.slot is None
    assert request.length == 1 + 90 - request.state.evicted


def test_a_closed_thought_stays_whole_after_a_retraction():
    loop = thinking()
    request = loop.add(prompt=[START], output=says((40, END)))
    loop.run(60)
    assert [g for g, _, _ in request.done] == [20, 36]
    loop.retract(request)
    loop.run(60)
    assert len(request.done) == 2
    assert request.length == 1 + 120


def test_after_a_retraction_an_open_thought_is_compressed_late():
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
    assert request.done == []
    assert len(request.polls) <= 8


def test_scope_all_ignores_the_markers():
    loop = thinking()
    request = loop.add(output=says((3, START), (5, END)), scope="all")
    loop.run(60)
    assert [g for g, _, _ in request.done] == [20, 36, 52]
    assert request.state.segment is None
