"""What a retraction may lose, and what the tree may give to one that comes back."""

from __future__ import annotations

from collections import deque

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import pressure, result_in_flight, tree
from sglang_rpc.runtime.request_state import HookState, RequestState
from sglang_rpc.startup import cpu
from tests.fakes.batches import ScheduleBatch
from tests.fakes.memory import ReqToTokenPool
from tests.fakes.requests import Req, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler


@pytest.fixture
def module(monkeypatch):
    """SGLang's scheduler module, which says whether retractions are tested."""
    cpu.prepare()
    from sglang.srt.managers import scheduler

    monkeypatch.setattr(scheduler, "TEST_RETRACT", False)
    monkeypatch.setattr(scheduler, "TEST_RETRACT_INTERVAL", 3)
    return scheduler


STEP = 5


class Step:
    """One step of a scheduler with one running request, last compacted in step `compacted_in`."""

    def __init__(self, compacted_in: int, queue: list[str], setting: str = "off"):
        config = RPCConfig(pressure=setting, ratio=4, scope="all")
        options = RequestOptions.from_custom_params(None, config, knows_markers=False)
        request = Req(rpc=RequestState(options, hooks=HookState(compacted_in=compacted_in)))
        self.scheduler = Scheduler(result_queue=deque(queue), forward_ct=6)
        self.scheduler.rpc = self.runtime = Runtime(self.scheduler, config, step=STEP)
        pool = ReqToTokenPool(rpc=self.runtime)
        self.batch = ScheduleBatch([request], req_to_token_pool=pool, batch_is_full=True)

    def run(self, fits: bool):
        """What SGLang launches, or "retracted"."""

        def update(_scheduler, batch):
            answer = pressure.compress_before_retracting(fits, batch)
            return "launched" if (fits if answer is None else answer) else "retracted"

        result = result_in_flight.wait_for_result(update, self.scheduler, self.batch)
        assert self.runtime.retraction_is_certain is None
        return result


def test_compacted_in_this_step_with_its_result_under_way_it_waits(module):
    step = Step(STEP, ["a result"])
    assert step.run(fits=False) is None
    assert step.batch.batch_is_full is False
    step = Step(STEP, ["a result"])
    assert step.run(fits=True) == "launched"
    assert step.batch.batch_is_full is True


@pytest.mark.parametrize(("compacted_in", "queue"), [(STEP - 1, ["a result"]), (STEP, [])])
def test_otherwise_it_may_be_retracted(module, compacted_in, queue):
    assert Step(compacted_in, queue).run(fits=False) == "retracted"


def test_so_it_does_where_retractions_are_tested(module, monkeypatch):
    monkeypatch.setattr(module, "TEST_RETRACT", True)
    assert Step(STEP, ["a result"]).run(fits=True) is None
    assert Step(STEP - 1, ["a result"]).run(fits=True) == "launched"
    monkeypatch.setattr(module, "TEST_RETRACT_INTERVAL", 4)  # not in this step
    assert Step(STEP, ["a result"]).run(fits=True) == "launched"


def test_compressed_early_and_still_not_enough_it_waits(module, monkeypatch):
    step = Step(STEP - 1, ["a result"], setting="early")

    def evict_early(_runtime, batch, _factor):
        batch.reqs[0].rpc.hooks.compacted_in = STEP

    monkeypatch.setattr(pressure, "_evict_early", evict_early)
    monkeypatch.setattr(pressure, "_highest", lambda _config: 4)
    monkeypatch.setattr(pressure, "_fits", lambda _batch: False)
    assert step.run(fits=False) is None
    monkeypatch.setattr(pressure, "_fits", lambda _batch: True)
    assert step.run(fits=False) == "launched"


def test_questions_that_are_not_about_this_step_do_not_wait(module):
    step = Step(STEP, ["a result"])
    assert pressure.compress_before_retracting(False, step.batch) is None  # before a mixed step
    step.runtime.retraction_is_certain = False
    assert pressure.compress_before_retracting(False, step.batch, [0]) is None  # the retraction's own


@pytest.mark.parametrize(
    ("active", "backup", "generated", "longest"),
    [
        (True, None, 3, 10),
        (True, "kept", 3, 10),
        (False, "kept", 3, 10),  # its answer is not compressed, but what stands after the prompt is
        (False, None, 3, 25),
        (True, None, 0, 25),
    ],
)
def test_of_a_retracted_request_the_tree_gives_the_prompt(active, backup, generated, longest):
    options = RequestOptions.from_custom_params({"rpc": {"enabled": active}}, RPCConfig(), knows_markers=True)
    state = RequestState(options, hooks=HookState(saved=backup))
    assert state.active is active
    req = Req(ids([7] * 10), ids([8] * generated), state)
    assert tree.match_prompt_only(25, req) == longest
    assert tree.match_prompt_only(5, req) == 5
    req.rpc = None
    assert tree.match_prompt_only(25, req) == 25
