"""One request's record and the receipt it leaves."""

import pytest
import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.memory.host_backup import Backup, HostKV
from sglang_rpc.runtime.admission import Plan
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.decision import early_gain
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import SegmentTracker, ThinkMarkers, TokenMarker
from sglang_rpc.runtime.totals import Totals
from sglang_rpc.types import NEVER

START, END, WORD = 900, 901, 1
MARKERS = ThinkMarkers(TokenMarker(START), TokenMarker(END))
SETTINGS = {"interval": 64, "window": 8, "ratio": 4, "scope": "think"}


def state(**given) -> RequestState:
    return RequestState(RequestOptions.from_custom_params({"rpc": given}, RPCConfig(**SETTINGS)))


def thinking(prompt: list[int], output: list[int], **given) -> RequestState:
    result = state(**given)
    result.segment = SegmentTracker(MARKERS, prompt)
    result.segment.advance(output, len(output))
    return result


def test_a_new_request_is_polled_at_once():
    fresh = state()
    assert fresh.active and fresh.recording.slot is None
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
    assert used.segment is segment and used.totals.compressions == 2
    used.recording.slot = 1
    with pytest.raises(AssertionError, match="given back with the row"):
        used.reset()


def backup(queries: bool = False) -> Backup:
    none = HostKV((), 0)
    return Backup(none, "prompt", none, torch.zeros(1) if queries else None)


def test_what_a_retracted_request_had_is_given_back_to_it():
    used = thinking([START], [WORD])
    used.clock = Clock(events=2, evicted=96, check_at=500)
    used.recording.slot, used.recording.since, used.recording.ahead, used.totals.compressions = 3, 130, True, 2
    saved = used.save(backup())
    used.recording.slot, used.recording.ahead = None, False
    used.reset()
    assert used.clock == Clock() and saved.clock == Clock(2, 96, 500)
    assert (saved.recorded_since, saved.backup.tokens) == (130, 0)
    used.totals.compressions = 3
    used.restore(saved)
    assert used.clock == saved.clock and used.clock is not saved.clock  # it may have to be restored once more
    assert used.recording.slot is None and not used.recording.ahead and used.totals.compressions == 3


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


# --- what a compression ahead of time would free ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("generated", "ratio", "gain"),
    [
        (8, 4, -1),  # the window alone, and one entry would have to be kept
        (9, 4, 0),
        (10, 4, 1),  # of two, one stays
        (24, 4, 12),  # of 16, 4 stay
        (24, 16, 15),
        (24, 1000, 15),  # never none
        (71, 4, 63 - 15),
        (72, 4, 64 - 16),  # as on the due date
    ],
)
def test_what_an_early_compression_would_evict(generated, ratio, gain):
    assert early_gain(state(scope="all"), generated, ratio) == gain


@pytest.mark.parametrize(
    ("generated", "ratio", "gain"), [(72, 4, 0), (73, 4, 1), (76, 4, 3), (76, 8, 12), (136, 4, 48)]
)
def test_and_what_a_second_one_would(generated, ratio, gain):
    used = state(scope="all")
    used.clock.events, used.clock.evicted = 1, 48  # compressed at 72: 16 and the window are held
    assert early_gain(used, generated, ratio) == gain


def test_what_is_gone_cannot_be_gained_again():
    used = state(scope="all")
    assert early_gain(used, 48, 4) == 30
    used.clock.evicted = 30
    assert [early_gain(used, 48 + more, 4) for more in range(9)] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert early_gain(used, 48, 2) < 0  # it has been compressed at more than that


def test_only_a_thought_in_progress_has_something_to_gain():
    assert early_gain(thinking([WORD, START], [WORD] * 24), 24, 4) == 12
    assert early_gain(thinking([], [WORD] * 9 + [START]), 10 + 24, 4) == 12  # behind its start
    assert early_gain(thinking([], [WORD] * 100), 100, 4) == 0
    assert early_gain(state(), 100, 4) == 0  # the prompt has not been read
    assert early_gain(thinking([START], [WORD] * 30 + [END]), 100, 4) == 0
    assert early_gain(state(scope="all", enabled=False), 100, 4) == 0
    refused = state(scope="all")
    refused.refused = "a reason"
    assert early_gain(refused, 100, 4) == 0


# --- what it will hold ------------------------------------------------------------------------------------------

BUDGET = {"interval": 64, "window": 8, "budget_step": 16}


def test_the_plan_of_a_new_request():
    new = state(scope="all")
    assert new.plan(0, 500, True, 0) == Plan(0, 0, 500, True, compresses_at=72, start=0, **BUDGET)
    assert new.plan(10, 500, False, 0) == Plan(10, 10, 500, False, compresses_at=72, start=0, **BUDGET)


@pytest.mark.parametrize(
    ("generated", "slot_since", "compresses_at"),
    [
        (73, None, 136),
        (127, None, 136),
        (128, None, 136),  # a window from now is on its due date
        (129, None, 137),  # without a query slot: a window from now
        (135, 128, 136),
        (135, 130, 138),
        (150, 148, 156),
        (150, None, 158),
    ],
)
def test_the_plan_of_a_running_request(generated, slot_since, compresses_at):
    used = state(scope="all")
    used.clock.events, used.clock.evicted = 1, 48
    if slot_since is not None:
        used.recording.slot, used.recording.since = 2, slot_since
    plan = used.plan(generated, 70, True, 0)
    assert plan == Plan(generated - 48, generated, 70, True, compresses_at=compresses_at, start=0, **BUDGET)


def test_the_plan_of_a_thought_counts_from_its_start():
    late = thinking([], [WORD] * 30 + [START])
    assert late.plan(40, 100, False, 0) == Plan(40, 40, 100, False, compresses_at=31 + 72, start=31, **BUDGET)
    # Before its first thought, it is taken to begin at once.
    mute = thinking([], [WORD] * 30)
    assert mute.plan(30, 100, False, 0) == Plan(30, 30, 100, False, compresses_at=30 + 72, start=30, **BUDGET)


def test_what_is_not_compressed_is_planned_at_full_length():
    closed = thinking([START], [WORD] * 90 + [END])
    closed.clock.events, closed.clock.evicted = 1, 48
    refused = state(scope="all")
    refused.refused = "a reason"
    for request_state, held in ((closed, 52), (refused, 100), (state(enabled=False), 100)):
        plan = request_state.plan(100, 70, True, 0)
        assert plan == Plan(held, 100, 70, True) and plan.compresses_at == NEVER


@pytest.mark.parametrize(("queries", "compresses_at"), [(False, 200), (True, 205)])
def test_a_retracted_request_is_planned_uncompressed_unless_it_is_restored(queries, compresses_at):
    used = state(scope="all")
    used.clock, used.recording.since = Clock(2, 96, 500), 197
    if queries:
        used.recording.slot = 1
    before = used.plan(190, 70, False, 0)
    assert before == Plan(94, 190, 70, False, compresses_at=compresses_at, start=0, **BUDGET)
    saved = used.save(backup(queries))
    used.recording.slot = None
    used.reset()
    now = used.plan(190, 70, False, 0)
    assert now == Plan(190, 190, 70, False, compresses_at=198, start=0, **BUDGET)
    assert used.plan_saved(saved, 190, 70, False, 0) == before
    assert used.clock == Clock() and used.plan(190, 70, False, 0) == now  # asked, not done


def test_who_was_due_is_not_told_that_it_ended_before():
    late = state(scope="all")
    assert late.receipt(72)["reason"].startswith("finished before 72")  # the newest token's entry is not there yet
    assert late.receipt(73)["reason"] and not late.receipt(73)["reason"].startswith("finished before")
    late.totals.compressions = 1
    assert "reason" not in late.receipt(73)


def test_never_is_out_of_reach_but_fits_an_int64():
    assert 2**40 < NEVER < 2**63
