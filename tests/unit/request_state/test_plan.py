"""What a request is planned to hold."""

import pytest

from sglang_rpc.runtime.admission import Plan
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.types import NEVER
from tests.unit.request_state.states import END, START, WORD, backup, state, thinking

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
    assert plan == Plan(
        generated - 48,
        generated,
        70,
        True,
        compresses_at=compresses_at,
        start=0,
        **BUDGET,
        holds_slot=slot_since is not None,
    )


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
        assert plan == Plan(held, 100, 70, True)
        assert plan.compresses_at == NEVER


@pytest.mark.parametrize(("queries", "compresses_at"), [(False, 200), (True, 205)])
def test_a_retracted_request_is_planned_uncompressed_unless_it_is_restored(queries, compresses_at):
    used = state(scope="all")
    used.clock, used.recording.since = Clock(2, 96, 500), 197
    if queries:
        used.recording.slot = 1
    before = used.plan(190, 70, False, 0)
    assert before == Plan(94, 190, 70, False, compresses_at=compresses_at, start=0, **BUDGET, holds_slot=queries)
    saved = used.save(backup(queries))
    used.recording.slot = None
    used.reset()
    now = used.plan(190, 70, False, 0)
    assert now == Plan(190, 190, 70, False, compresses_at=198, start=0, **BUDGET)
    assert used.plan_saved(saved, 190, 70, False, 0) == before
    assert used.clock == Clock()
    assert used.plan(190, 70, False, 0) == now


def test_who_was_due_is_not_told_that_it_ended_before():
    late = state(scope="all")
    assert late.receipt(72)["reason"].startswith("finished before 72")  # the newest token's entry is not there yet
    assert late.receipt(73)["reason"]
    assert not late.receipt(73)["reason"].startswith("finished before")
    late.totals.compressions = 1
    assert "reason" not in late.receipt(73)


def test_never_is_out_of_reach_but_fits_an_int64():
    assert 2**40 < NEVER < 2**63
