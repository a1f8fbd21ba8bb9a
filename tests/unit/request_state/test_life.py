"""A request's state from its start to its receipt."""

import pytest

from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.totals import Totals
from tests.unit.request_state.states import END, SETTINGS, START, WORD, backup, state, thinking


def test_a_new_request_is_polled_at_once():
    fresh = state()
    assert fresh.active
    assert fresh.recording.slot is None
    assert (fresh.clock, fresh.totals) == (Clock(events=0, evicted=0, check_at=0), Totals())


def test_the_region_starts_with_the_thought():
    assert state(scope="all").start == 0
    assert state().start is None  # the prompt has not been read
    assert thinking([START], []).start == 0
    assert thinking([], [WORD]).start is None
    assert thinking([], [WORD, START, WORD]).start == 2


@pytest.mark.parametrize(
    ("request_state", "active"),
    [
        (state(), True),
        (state(scope="all"), True),
        (state(enabled=False), False),
        (thinking([], [WORD]), True),
        (thinking([START], [WORD]), True),
        (thinking([START], [END]), False),
    ],
)
def test_active_while_a_compression_may_come(request_state, active):
    assert request_state.active is active
    request_state.refused = "beam search"
    assert not request_state.active


def test_due_dates_count_from_the_start():
    assert state(scope="all").due(0) == 64 + 8
    late = thinking([], [WORD, START])
    assert [late.due(events) for events in (0, 3)] == [2 + 64 + 8, 2 + 4 * 64 + 8]
    assert thinking([START], [], interval=16, window=2).due(0) == 18
    with pytest.raises(AssertionError):
        state().due(0)


def test_reset_forgets_the_row_and_remembers_the_rest():
    used = thinking([START], [WORD])
    used.clock.events, used.clock.evicted, used.clock.check_at, used.totals.compressions = 2, 96, 500, 2
    segment = used.segment
    used.reset()
    assert (used.clock.events, used.evicted, used.clock.check_at) == (0, 0, 0)
    assert used.segment is segment
    assert used.totals.compressions == 2
    used.recording.slot = 1
    with pytest.raises(AssertionError, match="given back with the row"):
        used.reset()


def test_what_a_retracted_request_had_is_given_back_to_it():
    used = thinking([START], [WORD])
    used.clock = Clock(events=2, evicted=96, check_at=500)
    used.recording.slot, used.recording.since, used.recording.ahead, used.totals.compressions = 3, 130, True, 2
    saved = used.save(backup())
    used.recording.slot, used.recording.ahead = None, False
    used.reset()
    assert used.clock == Clock()
    assert saved.clock == Clock(2, 96, 500)
    assert (saved.recorded_since, saved.backup.tokens) == (130, 0)
    used.totals.compressions = 3
    used.restore(saved)
    assert used.clock == saved.clock
    assert used.clock is not saved.clock
    assert used.recording.slot is None
    assert not used.recording.ahead
    assert used.totals.compressions == 3


def test_requests_do_not_share_totals():
    first, second = state(), state()
    first.totals.evicted += 5
    assert second.totals.evicted == 0


def test_the_receipt_of_a_compressed_request():
    used = thinking([START], [WORD])
    used.totals = Totals(compressions=4, evicted=96, slots_freed=90, late=1, early=2, retractions=5, restored=3)
    used.clock.evicted = 48
    assert used.receipt(200) == {
        "compressions": 4,
        "generated": 200,
        "held": 152,
        "evicted": 96,
        "slots_freed": 90,
        "late": 1,
        "early": 2,
        "retractions": 5,
        "restored": 3,
        **SETTINGS,
    }


def test_the_receipt_shows_the_requests_own_settings():
    receipt = state(interval=32, window=4, ratio=2.5, scope="all").receipt(10)
    assert (receipt["interval"], receipt["window"], receipt["ratio"], receipt["scope"]) == (32, 4, 2.5, "all")
    assert (receipt["generated"], receipt["held"], receipt["evicted"]) == (10, 10, 0)


@pytest.mark.parametrize(
    ("request_state", "reason"),
    [
        (state(enabled=False), "switched off by the request"),
        (state(), "no think segment opened"),
        (thinking([], [WORD]), "no think segment opened"),
        (state(scope="all"), "finished before 72 generated tokens, where the first compression is due"),
        (thinking([], [WORD, START]), "finished before 74 generated tokens, where the first compression is due"),
        (
            thinking([START], [WORD, END]),
            "the think segment ended before 72 generated tokens, where the first compression is due",
        ),
    ],
)
def test_why_nothing_was_compressed(request_state, reason):
    assert request_state.receipt(40)["reason"] == reason
    request_state.refused = "cannot be compressed, because of this"
    assert request_state.receipt(40)["reason"] == "cannot be compressed, because of this"


def test_the_reason_is_not_the_thoughts_end_where_that_came_after_the_due_date():
    late = thinking([START], [*[WORD] * 90, END])
    assert late.receipt(200)["reason"] == "no query slot was free when a compression was due"
    late.totals.defer()
    assert late.receipt(200)["reason"] == "the pool was not under memory pressure when a compression was due"
    # What came after a short thought does not count.
    assert thinking([START], [WORD, END]).receipt(200)["reason"].startswith("the think segment ended before 72 ")
