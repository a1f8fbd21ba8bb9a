"""Compressions fall on their due dates, and keep what an oracle keeps, however many drafts a step accepts."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.targets import SERVING, SPECULATIVE
from sglang_rpc.runtime.admission import Forecast, Plan
from sglang_rpc.startup import process
from sglang_rpc.types import NEVER
from tests.loops.decode_loop import MARKERS, START, WORD, Loop, config
from tests.loops.loop_ahead import LoopAhead
from tests.unit.compressor.test_due_dates import BUDGETS

SCHEDULING = pytest.mark.parametrize("kind", [Loop, LoopAhead], ids=["", "overlap"])


def settle(loop: Loop) -> None:
    """Look at what the last step has brought."""
    if isinstance(loop, LoopAhead):
        loop.settle()
    loop.poll()


@SCHEDULING
@pytest.mark.parametrize("drafts", [2, 3, 6])
@pytest.mark.parametrize(("interval", "window", "ratio"), BUDGETS)
def test_on_time_whatever_is_accepted(interval, window, ratio, drafts, kind):
    rng = random.Random(drafts)
    loop = kind(config(interval, window, ratio), drafts=drafts)
    requests = [loop.add(), loop.add(row=2, prompt=9), loop.add(row=3, prompt=1)]
    for _ in range(60):
        loop.draft(lambda: rng.randint(1, drafts))
    settle(loop)
    for request in requests:
        due = range(interval + window, request.generated + 1, interval)
        assert request.done == [(g, n, False) for n, g in enumerate(due, 1)]
        assert len(request.done) > 2


def test_most_steps_do_not_wait_for_the_last_ones_result():
    rng = random.Random(2)
    loop = LoopAhead(config(64, 8), drafts=4)
    requests = [loop.add(), loop.add(row=2, prompt=9)]
    for _ in range(100):
        loop.draft(lambda: rng.randint(1, 4))
    dates = sum(len(request.done) for request in requests)
    assert dates >= 4
    assert loop.waits <= 3 * dates  # at 4, 3, ... tokens before a date, and seldom at each of them


@SCHEDULING
@pytest.mark.parametrize("opens", range(0, 45, 3))
def test_a_thought_that_begins_inside_a_step_is_seen_in_time(opens, kind):
    """All drafts are accepted, so that steps run past a poll as far as they can."""
    loop = kind(config(16, 4, scope="think"), drafts=6, markers=MARKERS)
    request = loop.add(output=[WORD] * opens + [START] + [WORD] * 200)
    while request.generated < 120:
        loop.draft(lambda: 6)
    settle(loop)
    dates = [opens + 1 + 16 * n + 4 for n in range(1, 9)]
    assert request.done == [(g, n, False) for n, g in enumerate(dates, 1) if g <= request.generated]
    assert len(request.done) > 3


@SCHEDULING
def test_without_a_free_query_slot_it_comes_late_and_goes_on(kind):
    rng = random.Random(1)
    loop = kind(config(16, 4), drafts=4, slots=1)
    requests = [loop.add(), loop.add(row=2), loop.add(row=3)]
    for _ in range(60):
        loop.draft(lambda: rng.randint(1, 4))
    assert any(late for request in requests for _, _, late in request.done)
    assert all(len(request.done) > 2 for request in requests)


def test_dates_that_are_kept_again_while_a_step_is_in_flight_are_ahead_of_it():
    """Its window was recorded ahead of time, so it could be compressed at once, were it known how long it is."""
    loop = LoopAhead(config(16, 4), drafts=4)
    loop.compressor.dates_kept = False
    request = loop.add()
    for _ in range(12):
        loop.draft(lambda: 3)
    assert loop.record_ahead(request)
    for _ in range(4):
        loop.draft(lambda: 3)
    loop.compressor.dates_kept = True
    request.state.clock.check_now()
    known = request.generated - 3
    loop.draft(lambda: 3)
    assert loop.table.stops[request.row] == 5 + known + 4 + 1
    loop.draft(lambda: 3)
    settle(loop)
    assert request.done == [(known + 5, 2, True)]


def test_a_slot_that_is_given_back_stops_nobody():
    loop = Loop(config(16, 4), drafts=4)
    request = loop.add()
    while request.state.recording.slot is None:
        loop.draft(lambda: 4)
    table = loop.compressor.speculative
    assert table.stop[request.row] == 5 + 20
    loop.compressor.release_slot(request.state)
    assert table.stop[request.row] == NEVER


def test_a_row_stops_at_its_new_length_once_it_is_compressed():
    loop = Loop(config(4, 8, 2), drafts=3)
    request, table = loop.add(), loop.compressor.speculative
    while not request.done:
        loop.draft(lambda: 3)
    assert table.evicted[request.row] == request.state.evicted == 2
    assert table.stop[request.row] == 5 + request.state.due(1) - request.state.evicted


@pytest.mark.parametrize("page", [1, 16])
def test_slots_for_drafts_are_reserved_beside_the_entries(page):
    waiting = Plan(0, 0, 100, ends=True, prompt=10, ahead=8)
    assert Forecast([waiting], page).peak == -(-118 // page) * page - -(-10 // page) * page
    running = Plan(50, 50, 50, ends=True, prompt=10, ahead=8, ahead_now=8)
    assert Forecast([running], page).peak == -(-118 // page) * page - -(-68 // page) * page


@pytest.mark.parametrize(("algorithm", "occasions"), [(None, {SERVING}), ("STANDALONE", {SERVING, SPECULATIVE})])
def test_hooks_of_speculation_are_put_on_where_a_server_speculates(monkeypatch, algorithm, occasions):
    put_on = []
    monkeypatch.setattr(process, "install", put_on.extend)
    monkeypatch.setattr(process, "config_of", lambda server_args: RPCConfig())
    process._prepare_scheduler(SimpleNamespace(speculative_algorithm=algorithm))
    assert {hook.when for hook in put_on} == occasions
    own = {hook.function.__name__ for hook in put_on if hook.when == SPECULATIVE}
    every = {"cut_at_due_date", "count_entries", "see_the_tree", "offer_pytorch", "install_draft_queries"}
    every |= {"wait_for_lengths", "compress_before_launch", "track_no_state_of_drafts"}
    assert own == (set() if algorithm is None else every)
