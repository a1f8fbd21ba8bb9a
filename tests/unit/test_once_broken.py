"""Faults that were there once, each with the smallest case that showed it."""

import pytest

from sglang_rpc.config import MAX_TOKENS, RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import pressure
from sglang_rpc.hooks.metrics import Metrics
from sglang_rpc.runtime.admission import Forecast, Plan
from sglang_rpc.runtime.pressure import Watermarks
from sglang_rpc.types import NEVER
from tests.fakes.batches import ScheduleBatch
from tests.fakes.memory import Allocator
from tests.fakes.requests import Req, ReqKvInfo, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.loops.decode_loop import Loop


def config(interval=16, window=8, ratio=4, **others):
    return RPCConfig(interval=interval, window=window, ratio=ratio, scope="all", **others)


@pytest.mark.parametrize("g", range(34, 39))
def test_an_early_compression_within_the_due_dates_own_window_does_not_delay_it(g):
    # due 40, its window begins at 32, and the slot is the date's since then.
    loop = Loop(config())
    request = loop.add()
    loop.run(24)
    loop.record_ahead(request)
    loop.run(g - 24)
    assert not request.state.recording.ahead
    assert 32 <= g < 40
    assert loop.evict_early(request, 4) is not None
    loop.compressor.stop_recording_ahead(request.state)  # pressure.watch in the next step, as memory is no longer short
    loop.run(30)
    assert request.done[1] == (40, 2, False), request.done


def test_nor_does_the_hook_that_watches_memory():
    loop = Loop(config())
    request = loop.add()
    loop.run(24)
    loop.record_ahead(request)
    loop.run(12)
    assert loop.evict_early(request, 4) is not None  # at 36; due 40
    scheduler = Scheduler(token_to_kv_pool_allocator=Allocator(lambda: len(loop.free)))
    runtime = Runtime(scheduler, loop.config, loop.compressor, loop.ring, recording_ahead=[request.state])
    pressure.watch(runtime, [ScheduleBatch([Req()])])
    assert request.state.recording.slot is not None
    loop.run(10)
    assert request.done[1] == (40, 2, False)


BUDGET = dict(interval=4096, window=32, budget_step=1024)


def test_what_stays_at_its_highest_does_so_after_the_last_bucket_too():
    # Of unknown length, about to be compressed, with 100 tokens to be reserved for. After them it counts as 4128.
    unknown = Plan(4128, 4128, 100, False, compresses_at=4128, **BUDGET)
    short = Plan(100, 100, 10, True)
    long = Plan(0, 0, 4128, True)
    assert Forecast([unknown], 1).peak_with(long) == 4128
    # A request that ends in 10 steps gives 100 back; it cannot free 3072.
    assert Forecast([short, unknown], 1).peak_with(long) >= 4128 - 100


def test_a_receipt_blames_the_pool_only_when_compression_waits_for_pressure():
    loop = Loop(config(when="always"), slots=1)
    blocker = loop.ring.acquire(3)
    request = loop.add()
    loop.run(60)  # never a query slot
    assert blocker
    assert loop.compressor.counters.slot_waits > 0
    assert "memory_pressure" not in request.state.receipt(60)["reason"]


def test_bounds_are_written_in_full():
    with pytest.raises(ConfigError, match=f"from 4 to {MAX_TOKENS} "):
        RPCConfig(max_ratio=3)


def test_no_window_is_recorded_ahead_for_a_request_whose_prefill_goes_on_in_chunks():
    loop = Loop(config())
    request = loop.add()
    loop.run(29)  # compressed at 24; the window of 40 begins at 32
    kv = ReqKvInfo(req_pool_idx=request.row, kv_committed_len=request.length)
    req = Req(ids(request.prompt), rpc=request.state, kv=kv)
    scheduler = Scheduler(chunked_req=req)  # whose pool is full
    runtime = Runtime(scheduler, loop.config, loop.compressor, loop.ring)
    pressure.watch(runtime, [ScheduleBatch([req])])
    assert request.state.recording.slot is None
    assert not runtime.recording_ahead
    scheduler.chunked_req = None
    pressure.watch(runtime, [ScheduleBatch([req])])
    assert request.state.recording.ahead
    assert len(runtime.recording_ahead) == 1


def pipelined(loop: Loop) -> tuple[Runtime, Req]:
    """A full pool, and a request that decodes in another micro-batch than the one that is planned."""
    request = loop.add()
    loop.run(29)  # compressed at 24; the window of 40 begins at 32
    kv = ReqKvInfo(req_pool_idx=request.row, kv_committed_len=request.length)
    req = Req(ids(request.prompt), rpc=request.state, kv=kv)
    ended = Req(rpc=request.state)
    scheduler = Scheduler(in_flight=[ScheduleBatch([req]), None, ScheduleBatch([ended, req])])
    return Runtime(scheduler, loop.config, loop.compressor, loop.ring, pipelined=True), req


def test_memory_pressure_counts_and_records_the_requests_of_every_micro_batch():
    runtime, req = pipelined(Loop(config()))
    assert runtime.in_micro_batches() == [req, req]
    pressure.watch(runtime, [ScheduleBatch()])
    assert req.rpc.recording.ahead
    assert runtime.recording_ahead == [req.rpc]
    # Enough for one request, which is counted once: nobody needs to be recorded any more.
    room = runtime.config.window + pressure.MARGIN
    runtime.scheduler.token_to_kv_pool_allocator = Allocator(lambda: room)
    pressure.watch(runtime, [ScheduleBatch([req])])
    assert not req.rpc.recording.ahead


def test_memory_pressure_begins_for_every_micro_batch():
    runtime, req = pipelined(Loop(config(when="pressure")))
    runtime.watermarks, runtime.metrics = Watermarks(0.9, 0.5), Metrics(None)
    req.rpc.clock.check_again(NEVER, 0)
    pressure.watch(runtime, [ScheduleBatch()])
    assert req.rpc.clock.check_at < NEVER
