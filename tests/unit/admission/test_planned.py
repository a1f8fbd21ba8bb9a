"""What was planned for a request, and what it then held."""

import numpy as np
import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.runtime.admission import Plan, highest_held
from tests.loops.decode_loop import Loop

TOTAL = 90


class Planned:
    """A played decode loop in which one request is planned anew at every step."""

    def __init__(self, budget: tuple[int, int, float], when_short: float | None = None):
        interval, window, ratio = budget
        config = RPCConfig(interval=interval, window=window, ratio=ratio, scope="all", kernel_size=1)
        self.loop = Loop(config, slots=1, check=False)
        self.request = self.loop.add()
        self.ratio = when_short  #: at which it is compressed early at every step, if it is
        self.plans: dict[int, Plan] = {}
        self.arrived: dict[int, int] = {}  #: entries held at each step, before anything is compressed

    def run(self, upto: int) -> None:
        request = self.request
        while request.generated < upto:
            self.loop.poll()
            if self.ratio is not None:
                self.loop.record_ahead(request)
                self.loop.evict_early(request, self.ratio)
            self.plans[request.generated] = request.state.plan(request.generated, TOTAL - request.generated, True, 0)
            self.loop._decode(request)
            self.arrived[request.generated] = request.length - len(request.prompt)

    def surplus(self) -> list[int]:
        """How much more was planned than held, for each plan and each step after it."""
        self.run(TOTAL)
        assert self.request.state.totals.compressions > 1
        result = []
        for generated, plan in self.plans.items():
            steps = np.arange(TOTAL - generated)
            most = highest_held([plan], steps, steps)[0].tolist()
            result += [most[step] - self.arrived[generated + step] for step in range(1, len(most))]
        return result


several_budgets = pytest.mark.parametrize("budget", [(16, 4, 4), (5, 8, 2), (16, 4, 1.2), (2, 1, 2)], ids=str)


@several_budgets
def test_what_was_planned_is_what_is_held(budget):
    surplus = Planned(budget).surplus()
    assert set(surplus) == {0}
    assert len(surplus) == TOTAL * (TOTAL - 1) / 2


@several_budgets
@pytest.mark.parametrize("factor", [1, 4])
def test_early_compressions_hold_no_more_than_was_planned(budget, factor):
    planned = Planned(budget, when_short=budget[2] * factor)
    surplus = planned.surplus()
    assert min(surplus) >= 0
    assert (max(surplus) > 0) == (planned.request.early != [])


@several_budgets
@pytest.mark.parametrize("at", [10, 29, 36, 50])
def test_after_a_retraction_no_more_is_held_than_is_planned(budget, at):
    planned = Planned(budget)
    planned.run(at)
    planned.loop.retract(planned.request)
    planned.plans.clear()
    assert min(planned.surplus()) >= 0
    assert planned.plans[at].held == at


@several_budgets
@pytest.mark.parametrize("at", [10, 29, 36, 50])
def test_a_restored_request_was_planned_as_if_it_had_not_left(budget, at):
    planned, stayed = Planned(budget), Planned(budget)
    planned.run(at)
    planned.loop.poll()
    backups = HostBackup(planned.loop.layers, 10**9)
    planned.loop.leave(planned.request, backups)
    # It comes back without its newest entry, which is prefilled, and until then without a query slot.
    plan = planned.request.state.plan_saved(planned.request.state.hooks.saved, at, TOTAL - at, True, 0)
    planned.loop.come_back(planned.request, row=2, backups=backups)
    planned.plans.clear()
    planned.plans[at] = plan
    planned.arrived[at] = planned.request.length - len(planned.request.prompt)  # if it left just compressed
    surplus = planned.surplus()
    assert min(surplus) >= 0
    stayed.run(TOTAL)
    stayed.arrived[at] = planned.arrived[at]
    assert planned.arrived == stayed.arrived
    assert planned.request.done == stayed.request.done


@several_budgets
def test_late_for_want_of_a_query_slot_it_still_holds_no_more_than_planned(budget):
    planned = Planned(budget)
    blocker = planned.loop.ring.acquire(3)
    planned.run(40)
    planned.loop.ring.release(blocker)
    planned.plans.clear()
    assert min(planned.surplus()) >= 0
    assert planned.request.state.totals.late == 1
