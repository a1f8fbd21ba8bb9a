"""One scheduling step, as SGLang's scheduler goes through it."""

from types import SimpleNamespace

from sglang_rpc.hooks import scheduling
from tests.fakes.batches import ForwardMode, ScheduleBatch
from tests.fakes.requests import Req, ReqKvInfo, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.loops.decode_loop import Loop, config


def test_a_row_may_be_a_streaming_sessions_which_has_no_state():
    scheduler = Scheduler()
    scheduler.req_to_token_pool.rpc = SimpleNamespace()
    scheduling.release_row(scheduler.req_to_token_pool, SimpleNamespace(kv=ReqKvInfo(1)))


def test_a_query_slot_is_kept_free_for_one_step_only():
    loop = Loop(config(pressure="off"))
    request = loop.add()
    for _ in range(16):  # the window of its due date begins
        loop._decode(request)
    kv = ReqKvInfo(req_pool_idx=request.row, kv_committed_len=request.length)
    req = Req(ids(request.prompt), ids(request.output), request.state, kv)
    scheduler = Scheduler()
    scheduler.rpc = runtime = Runtime(scheduler, loop.config, loop.compressor, loop.ring)
    runtime.report_slots = lambda: None
    recorder = loop.compressor.recorder
    recorder.keeps_free = True  # somebody could not come back in the step before
    batch = ScheduleBatch([req])
    scheduling.compress_due(scheduler, batch, None)
    assert request.state.recording.slot is None
    assert not recorder.keeps_free
    loop._decode(request)
    req.kv.kv_committed_len = request.length
    scheduling.compress_due(scheduler, batch, SimpleNamespace(forward_mode=batch.forward_mode))
    assert request.state.recording.slot is not None
    assert recorder.waiting == 0


def test_an_outdated_micro_batch_leaves_alone_whose_last_chunk_another_one_ran(monkeypatch):
    """With a pipeline: a request of some length is prefilled again, in chunks, and its last one has just run."""
    loop = Loop(config())
    request = loop.add()
    loop.run(20)
    request.state.clock.check_now()
    kv = ReqKvInfo(req_pool_idx=request.row, kv_committed_len=request.length)
    req = Req(ids(request.prompt), ids(request.output), request.state, kv)
    scheduler = Scheduler()
    scheduler.rpc = runtime = Runtime(scheduler, loop.config, loop.compressor, loop.ring, pipelined=True)
    runtime.report_slots = lambda: None
    polled = []
    monkeypatch.setattr(scheduling, "_poll", lambda runtime, req, state: polled.append(req))
    outdated = ScheduleBatch([req], ForwardMode.EXTEND, chunked_req=req)
    scheduling.compress_due(scheduler, ScheduleBatch(), outdated)
    assert polled == []
    # The micro-batch that ran it decodes it now; it began as the extend of an earlier chunk.
    scheduling.compress_due(scheduler, ScheduleBatch([req], chunked_req=req), None)
    assert polled == [req]
