"""A request that a decode server retracts comes back with the KV it had, by SGLang's own backup.

A decode server cannot prefill, so SGLang copies a retracted row to the host, and back. It takes the row to be as long
as the text. One number corrects that everywhere: what has been evicted, which the request keeps through a retraction.
What the row is not enough for, the queries of a window that is being recorded, is kept here.

A pause with mode `retract` backs nothing up: the prefill server computes all KV anew, and the request comes back
uncompressed, as it would on a server without disaggregation.
"""

from collections.abc import Callable, Sequence

from sglang_rpc.contract.sglang.disaggregation import DecodePreallocQueue
from sglang_rpc.contract.sglang.memory import Allocator, ReqToTokenPool
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.targets import AFTER, AROUND, hook
from sglang_rpc.hooks import rows
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of, state_of
from sglang_rpc.hooks.unresumable import end_if_unresumable
from sglang_rpc.runtime.request_state import Kept

_QUEUE = "sglang.srt.disaggregation.decode.DecodePreallocQueue"


def keep(runtime: SchedulerRPC, req: Req) -> None:
    """Before SGLang backs up the row of `req`, if it will: note what must come back beside it."""
    from sglang.srt.runtime_context import get_disagg

    state = req.rpc
    if get_disagg().disaggregation_decode_retraction_backup == "none" or state is None:
        return
    if not (state.active or state.evicted) or not req.kv.holds_kv:
        return
    recording = state.recording
    if recording.slot is None or recording.ahead:
        state.hooks.kept = Kept()
        return
    # The forward in flight may still write the newest query. That replaces one that no window needs, and comes again.
    runtime.fence()
    state.hooks.kept = Kept(recording.since, runtime.ring.buffer[:, recording.slot].to("cpu", copy=True))


@hook(
    AROUND,
    "sglang.srt.managers.schedule_batch.Req.offload_kv_cache",
    "a retracted row is copied to the host by the length of its text",
)
@hook(
    AROUND,
    "sglang.srt.managers.schedule_batch.Req.load_kv_cache",
    "it comes back by the length of its text",
)
def copy_row(original: Callable[..., None], req: Req, pool: ReqToTokenPool, allocator: Allocator) -> None:
    """AROUND Req.offload_kv_cache, before the row is released, and Req.load_kv_cache, once the request has a row again.

    On decode servers alone. Inside, SGLang, which takes a row to have an entry for each id but the last, finds this
    row's length.
    """
    state, output = state_of(req), req.output_ids
    if state is not None and state.evicted:
        req.output_ids = output[state.evicted :]
    try:
        original(req, pool, allocator)
    finally:
        req.output_ids = output


@hook(
    AFTER,
    f"{_QUEUE}._pre_alloc_fill_len",
    "as many slots are taken for a request that comes back as its text has tokens",
)
def count_entries_to_come(tokens: int, req: Req) -> int:
    """AFTER DecodePreallocQueue._pre_alloc_fill_len: entries of the row that a waiting request needs. Only of one that
    was retracted with a backup has anything been evicted."""
    state = state_of(req)
    return tokens if state is None else tokens - state.evicted


@hook(
    AROUND,
    f"{_QUEUE}.resume_retracted_reqs",
    "a request whose window was being recorded needs a query slot again, or its next compression would come late",
)
def resume_with_query_slots(
    original: Callable[..., list[Req]], queue: DecodePreallocQueue, rids_to_check: Sequence[str] | None = None
) -> list[Req]:
    """AROUND DecodePreallocQueue.resume_retracted_reqs, before each step: in their order, as many as there are query
    slots for."""
    runtime = runtime_of(queue.scheduler)
    if runtime is None or not queue.retracted_queue:
        return original(queue, rids_to_check)
    free, fitting = runtime.ring.free, []
    for req in queue.retracted_queue:
        if _kept_queries(req):
            if free == 0:
                runtime.compressor.recorder.keeps_free = True
                break
            free -= 1
        if rids_to_check is None or req.rid in rids_to_check:
            fitting.append(req.rid)
    return original(queue, fitting)


def _kept_queries(req: Req) -> bool:
    state = state_of(req)
    return state is not None and state.hooks.kept is not None and state.hooks.kept.queries is not None


@hook(
    AFTER,
    f"{_QUEUE}._pre_alloc",
    "a retracted request has a row again, and records on",
)
def come_back(_result: object, queue: DecodePreallocQueue, req: Req, *_args: object, **_kwargs: object) -> None:
    """AFTER DecodePreallocQueue._pre_alloc, once per request that gets a row; its KV is loaded right after."""
    runtime, state = runtime_of(queue.scheduler), state_of(req)
    if runtime is None or state is None or (kept := state.hooks.kept) is None:
        return
    if kept.queries is not None:
        runtime.fence()  # the last owner of the query slot may still write there
        slot = runtime.compressor.recorder.resume(state.recording, rows.row_of(req), kept.recorded_since)
        runtime.ring.buffer[:, slot].copy_(kept.queries)
    state.hooks.kept = None
    state.totals.came_back()
    runtime.compressor.counters.restored += 1


@hook(
    AROUND,
    f"{_QUEUE}.hold_rebootstrap",
    "a paused request whose KV is computed anew, uncompressed, may never fit again, and would block the queue",
)
def hold_if_resumable(original: Callable[..., None], queue: DecodePreallocQueue, req: Req) -> None:
    """AROUND DecodePreallocQueue.hold_rebootstrap, once per request that a pause retracts."""
    runtime = runtime_of(queue.scheduler)
    if runtime is None or not end_if_unresumable(runtime, req):
        original(queue, req)
