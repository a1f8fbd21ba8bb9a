"""One request's record and the receipt it leaves."""

from dataclasses import FrozenInstanceError

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.policy import budget
from sglang_rpc.runtime.admission import Plan
from sglang_rpc.runtime.request_state import Live, RequestState, Totals
from sglang_rpc.runtime.segment import SegmentTracker, ThinkMarkers, TokenMarker
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


def test_a_new_request_is_looked_at_at_once():
    fresh = state()
    assert fresh.check_at == 0 and fresh.active and fresh.slot is None
    assert (fresh.events, fresh.evicted, fresh.totals) == (0, 0, Totals())


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
    assert state(scope="all").due() == 64 + 8
    late = thinking([], [WORD, START])
    assert late.due() == 2 + 64 + 8
    late.events = 3
    assert late.due() == 2 + 4 * 64 + 8
    assert thinking([START], [], interval=16, window=2).due() == 18
    with pytest.raises(AssertionError):
        state().due()


def test_reset_forgets_the_row_and_remembers_the_rest():
    used = thinking([START], [WORD])
    used.events, used.evicted, used.check_at, used.totals.compressions = 2, 96, 500, 2
    segment = used.segment
    used.reset()
    assert (used.events, used.evicted, used.check_at) == (0, 0, 0)
    assert used.segment is segment and used.totals.compressions == 2
    used.slot = 1
    with pytest.raises(AssertionError, match="given back with the row"):
        used.reset()


def test_what_a_retracted_request_had_is_given_back_to_it():
    used = thinking([START], [WORD])
    used.events, used.evicted, used.slot_since, used.check_at = 2, 96, 130, 500
    used.slot, used.pre_recording, used.totals.compressions = 3, True, 2
    live = used.live()
    assert live == Live(events=2, evicted=96, slot_since=130, check_at=500)
    with pytest.raises(FrozenInstanceError):
        live.events = 3  # type: ignore[misc]
    used.slot, used.pre_recording = None, False
    used.reset()
    assert used.live() == Live(0, 0, 130, 0)  # without a slot nobody asks since when
    used.slot_since, used.totals.compressions = 999, 3
    used.restore(live)
    assert used.live() == live and used.due() == 3 * 64 + 8
    assert used.slot is None and not used.pre_recording and used.totals.compressions == 3


def test_requests_do_not_share_totals():
    first, second = state(), state()
    first.totals.evicted += 5
    assert second.totals.evicted == 0


def test_the_receipt_of_a_compressed_request():
    used = thinking([START], [WORD])
    used.totals = Totals(compressions=4, evicted=96, slots_freed=90, late=1, early=2, retractions=5, restored=3)
    used.evicted = 48
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
    assert state(scope="all").early_gain(generated, ratio) == gain


@pytest.mark.parametrize(
    ("generated", "ratio", "gain"), [(72, 4, 0), (73, 4, 1), (76, 4, 3), (76, 8, 12), (136, 4, 48)]
)
def test_and_what_a_second_one_would(generated, ratio, gain):
    used = state(scope="all")
    used.events, used.evicted = 1, 48  # compressed at 72: 16 and the window are held
    assert used.early_gain(generated, ratio) == gain


def test_what_is_gone_cannot_be_gained_again():
    used = state(scope="all")
    assert used.early_gain(48, 4) == 30
    used.evicted = 30
    assert [used.early_gain(48 + more, 4) for more in range(9)] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert used.early_gain(48, 2) < 0  # it has been compressed at more than that


def test_only_a_thought_in_progress_has_something_to_gain():
    assert thinking([WORD, START], [WORD] * 24).early_gain(24, 4) == 12
    assert thinking([], [WORD] * 9 + [START]).early_gain(10 + 24, 4) == 12  # behind its start
    assert thinking([], [WORD] * 100).early_gain(100, 4) == 0
    assert state().early_gain(100, 4) == 0  # the prompt has not been read
    assert thinking([START], [WORD] * 30 + [END]).early_gain(100, 4) == 0
    assert state(scope="all", enabled=False).early_gain(100, 4) == 0
    refused = state(scope="all")
    refused.refused = "a reason"
    assert refused.early_gain(100, 4) == 0


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
    used.events, used.evicted = 1, 48
    if slot_since is not None:
        used.slot, used.slot_since = 2, slot_since
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
    closed.events, closed.evicted = 1, 48
    refused = state(scope="all")
    refused.refused = "a reason"
    for request_state, held in ((closed, 52), (refused, 100), (state(enabled=False), 100)):
        plan = request_state.plan(100, 70, True, 0)
        assert plan == Plan(held, 100, 70, True) and plan.compresses_at == NEVER


def test_a_retracted_request_is_planned_uncompressed_unless_it_is_restored():
    used = state(scope="all")
    used.events, used.evicted, used.slot_since, used.check_at = 2, 96, 130, 500
    used.to_restore = used.live()
    before = used.plan(150, 70, False, 0)
    assert before == Plan(54, 150, 70, False, compresses_at=200, start=0, **BUDGET)
    used.reset()
    assert used.plan(150, 70, False, 0) == Plan(150, 150, 70, False, compresses_at=158, start=0, **BUDGET)
    now = used.live()
    assert used.plan_restored(150, 70, False, 0) == before
    assert used.live() == now  # asked, not done


def test_asking_for_the_plan_of_a_restored_request_changes_nothing_even_if_it_fails(monkeypatch):
    used = state(scope="all")
    used.to_restore, now = Live(2, 96, 130, 500), used.live()
    monkeypatch.setattr(budget, "next_due", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        used.plan_restored(150, 70, False, 0)
    assert used.live() == now
    used.to_restore = None
    with pytest.raises(AssertionError):
        used.plan_restored(150, 70, False, 0)


def test_who_was_due_is_not_told_that_it_ended_before():
    late = state(scope="all")
    assert late.receipt(72)["reason"].startswith("finished before 72")  # the newest token's entry is not there yet
    assert late.receipt(73)["reason"] and not late.receipt(73)["reason"].startswith("finished before")
    late.totals.compressions = 1
    assert "reason" not in late.receipt(73)


def test_never_is_out_of_reach_but_fits_an_int64():
    assert 2**40 < NEVER < 2**63
