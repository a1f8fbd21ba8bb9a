"""A request that a decode server retracts: what is copied, what is kept, and when it comes back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.hooks import decode_retraction, tree
from sglang_rpc.hooks.decode_retraction import (
    come_back,
    copy_row,
    count_entries_to_come,
    hold_if_resumable,
    keep,
    resume_with_query_slots,
)
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.recording import Recorder
from sglang_rpc.runtime.request_state import Kept
from sglang_rpc.runtime.totals import Counters
from sglang_rpc.startup import cpu
from tests.fakes.disaggregation import DecodePreallocQueue
from tests.fakes.requests import Req, ReqKvInfo, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.unit.request_state.states import state

WINDOW = 4


@pytest.fixture
def runtime(monkeypatch):
    """Of a decode server with two query slots."""
    scheduler = Scheduler()
    scheduler.disagg_decode_prealloc_queue = DecodePreallocQueue(scheduler)
    ring = QueryRing(layers=2, slots=2, rows=9, window=WINDOW, heads=1, head_dim=3, dtype=torch.float32, device="cpu")
    made = scheduler.rpc = Runtime(scheduler, ring=ring, decode_server=True)
    made.compressor = SimpleNamespace(recorder=Recorder(ring), counters=Counters())
    made.fence = lambda: None
    return made


@pytest.fixture
def backup(monkeypatch):
    """Names how SGLang backs rows up."""
    cpu.prepare()
    from sglang.srt import runtime_context

    def choose(name: str) -> None:
        disagg = SimpleNamespace(disaggregation_decode_retraction_backup=name)
        monkeypatch.setattr(runtime_context, "get_disagg", lambda: disagg)

    choose("cpu_tensor")
    return choose


def request(evicted: int = 12, row: int | None = 3, rid: str = "rid") -> Req:
    """Of 5 prompt tokens and 21 generated ones."""
    made = Req(ids(range(5)), ids(range(100, 121)), state(scope="all"), ReqKvInfo(row), rid=rid)
    made.rpc.clock = Clock(events=1, evicted=evicted, check_at=40)
    return made


def recording(runtime, req: Req, since: int = 17) -> torch.Tensor:
    """Let `req` record; returns its queries."""
    runtime.compressor.recorder.record(req.rpc.recording, req.kv.req_pool_idx, since)
    queries = runtime.ring.buffer[:, req.rpc.recording.slot]
    queries.copy_(torch.rand_like(queries))
    return queries.clone()


@pytest.mark.parametrize("evicted", [0, 12])
def test_a_row_is_copied_as_long_as_it_is(evicted):
    seen, req = [], request(evicted)

    def original(req, pool, allocator):
        # as SGLang has it: `seqlen - 1`
        seen.append((len(req.origin_input_ids) + len(req.output_ids) - 1, pool, allocator))

    copy_row(original, req, "rows", "slots")
    assert seen == [(5 + 20 - evicted, "rows", "slots")]
    assert req.output_ids == ids(range(100, 121))


def test_the_ids_are_whole_again_after_an_error():
    req = request()

    def original(*_args):
        raise RuntimeError("out of host memory")

    with pytest.raises(RuntimeError):
        copy_row(original, req, None, None)
    assert len(req.output_ids) == 21


def test_a_waiting_request_needs_as_many_slots_as_its_row_had():
    assert count_entries_to_come(25, request()) == 13
    assert count_entries_to_come(25, request(evicted=0)) == 25
    assert count_entries_to_come(25, Req()) == 25


def test_what_a_row_had_evicted_and_its_queries_survive_the_retraction(runtime, backup):
    req = request()
    queries = recording(runtime, req)
    keep(runtime, req)
    runtime.compressor.recorder.release(req.rpc.recording)  # as the row ends
    runtime.ring.buffer.zero_()
    tree.forget_row(None, req)
    assert req.rpc.clock == Clock(events=1, evicted=12, check_at=40)

    req.kv.req_pool_idx = 7
    come_back(None, runtime.scheduler.disagg_decode_prealloc_queue, req)
    slot = req.rpc.recording.slot
    assert torch.equal(runtime.ring.buffer[:, slot], queries)
    assert req.rpc.recording.since == 17
    assert runtime.ring.slot_of_row[7] == slot
    assert req.rpc.hooks.kept is None
    assert (req.rpc.totals.restored, runtime.compressor.counters.restored) == (1, 1)
    come_back(None, runtime.scheduler.disagg_decode_prealloc_queue, req)  # a row is given once
    assert req.rpc.totals.restored == 1


def test_queries_recorded_ahead_are_not_kept(runtime, backup):
    req = request()
    runtime.compressor.recorder.record_ahead(req.rpc.recording, 3, 17)
    keep(runtime, req)
    assert req.rpc.hooks.kept == Kept()


def test_where_no_backup_is_made_nothing_is_kept(runtime, backup):
    backup("none")
    req = request()
    keep(runtime, req)
    assert req.rpc.hooks.kept is None
    tree.forget_row(None, req)
    assert req.rpc.evicted == 0


def test_of_a_request_that_is_never_compressed_nothing_is_kept(runtime, backup):
    req = request(evicted=0)
    req.rpc.refused = "a reason"
    keep(runtime, req)
    assert req.rpc.hooks.kept is None


def test_while_it_waits_its_plan_knows_since_when_it_was_recorded(runtime, backup):
    req = request()
    before = req.rpc.plan(21, 50, True, 5)
    recording(runtime, req, since=9)
    running = req.rpc.plan(21, 50, True, 5)
    keep(runtime, req)
    runtime.compressor.recorder.release(req.rpc.recording)
    assert req.rpc.plan(21, 50, True, 5) == running != before


def resumed(queue: DecodePreallocQueue, *given) -> list[str]:
    """Names of those that SGLang is allowed to take."""

    def original(queue, rids=None):
        return [req.rid for req in queue.retracted_queue if rids is None or req.rid in rids]

    return resume_with_query_slots(original, queue, *given)


def test_they_come_back_in_their_order_as_long_as_there_are_query_slots(runtime):
    queue = runtime.scheduler.disagg_decode_prealloc_queue
    queries = torch.zeros(2, WINDOW, 1, 3)
    for name, kept in (("a", Kept(1, queries)), ("b", Kept()), ("c", Kept(1, queries)), ("d", Kept(1, queries))):
        req = request(rid=name)
        req.rpc.hooks.kept = kept
        queue.retracted_queue.append(req)
    queue.retracted_queue.append(Req(rid="e"))
    assert resumed(queue) == ["a", "b", "c"]
    assert runtime.compressor.recorder.keeps_free
    assert resumed(queue, ["b", "d"]) == ["b"]
    runtime.compressor.recorder.keeps_free = False
    del queue.retracted_queue[3]
    assert resumed(queue) == ["a", "b", "c", "e"]
    assert not runtime.compressor.recorder.keeps_free
    queue.scheduler.rpc = None
    assert resumed(queue) == ["a", "b", "c", "e"]


@pytest.mark.parametrize("ends", [True, False])
def test_a_paused_request_that_can_never_come_back_is_not_held(runtime, monkeypatch, ends):
    held = []
    monkeypatch.setattr(decode_retraction, "end_if_unresumable", lambda *_: ends)
    queue, req = runtime.scheduler.disagg_decode_prealloc_queue, request()
    hold_if_resumable(lambda queue, req: held.append((queue, req)), queue, req)
    assert held == ([] if ends else [(queue, req)])
