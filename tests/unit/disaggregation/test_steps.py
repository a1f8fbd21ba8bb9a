"""A decode server's steps: what is compressed first, what a put-off retraction returns, and how long rows are."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc.hooks import decode_steps, result_in_flight
from sglang_rpc.hooks.result_in_flight import ResultInFlight
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.startup import cpu
from tests.fakes.batches import ScheduleBatch
from tests.fakes.disaggregation import DecodePreallocQueue
from tests.fakes.requests import Req, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.unit.request_state.states import state


@pytest.fixture
def scheduler(monkeypatch):
    cpu.prepare()
    made = Scheduler()
    made.disagg_decode_prealloc_queue = DecodePreallocQueue(made)
    made.rpc = Runtime(made, decode_server=True)
    return made


@pytest.fixture
def order(monkeypatch):
    """What happens in a step, in order."""
    happened = []
    monkeypatch.setattr(decode_steps, "compress_due", lambda *args: happened.append(("compress", *args)))
    return happened


def test_what_is_due_is_compressed_before_the_step_is_planned(scheduler, order):
    def original(given, batch):
        order.append(("plan", given, batch))
        return "a plan"

    batch = ScheduleBatch()
    assert decode_steps.plan_step(original, scheduler, running_batch=batch) == "a plan"
    assert order == [("compress", scheduler, batch, None), ("plan", scheduler, batch)]


def test_without_rpc_it_is_sglangs(scheduler, order):
    scheduler.rpc = None
    assert decode_steps.plan_step(lambda *_: "a plan", scheduler, ScheduleBatch()) == "a plan"
    assert order == []


def test_a_retraction_that_waits_launches_nothing_and_keeps_the_batch_that_is_running_by_then(scheduler, order):
    joined = ScheduleBatch()

    def original(*_args):
        raise ResultInFlight(joined)

    plan = decode_steps.plan_step(original, scheduler, ScheduleBatch())
    assert plan.batch_to_run is None
    assert plan.running_batch is joined
    assert scheduler.dp_attn_adapter.asked == [None]


@pytest.mark.parametrize("decode_server", [True, False])
def test_a_decode_server_is_told_by_an_exception_and_others_by_none(scheduler, decode_server):
    scheduler.rpc.decode_server = decode_server
    scheduler.result_queue.append("a result")
    batch = ScheduleBatch(batch_is_full=True)

    def original(*_args):
        raise ResultInFlight(batch)

    if decode_server:
        with pytest.raises(ResultInFlight) as put_off:
            result_in_flight.wait_for_result(original, scheduler, batch)
        assert put_off.value.batch is batch
    else:
        assert result_in_flight.wait_for_result(original, scheduler, batch) is None
    assert batch.batch_is_full is False
    assert scheduler.rpc.retraction_is_certain is None


def compressed(evicted: int) -> RequestState:
    made = state()
    made.clock = Clock(events=1, evicted=evicted)
    return made


class Prebuilt(ScheduleBatch):
    """Lengths that can be set, as SGLang's."""

    seq_lens_cpu = None
    seq_lens_sum = None


def test_requests_that_join_are_as_long_as_their_rows():
    reqs = [Req(ids([1] * 5), ids([2] * 20), compressed(12)), Req(ids([1] * 5), ids([2] * 3)), Req(rpc=compressed(0))]
    batch = Prebuilt(reqs)
    batch.seq_lens = before = torch.tensor([24, 7, 9])
    batch.seq_lens_cpu, batch.seq_lens_sum = torch.tensor([24, 7, 9]), 40
    batch.orig_seq_lens = torch.tensor([24, 7, 9], dtype=torch.int32)
    decode_steps.count_entries(None, batch)
    assert batch.seq_lens.tolist() == batch.seq_lens_cpu.tolist() == [12, 7, 9]
    assert batch.seq_lens_sum is None
    assert batch.orig_seq_lens.tolist() == [24, 7, 9]
    assert before.tolist() == [24, 7, 9]


def test_where_nobody_is_compressed_nothing_changes():
    batch = Prebuilt([Req(), Req(rpc=compressed(0))])
    batch.seq_lens = lengths = torch.tensor([4, 7])
    batch.seq_lens_sum = 11
    decode_steps.count_entries(None, batch)
    assert batch.seq_lens is lengths
    assert batch.seq_lens_sum == 11
