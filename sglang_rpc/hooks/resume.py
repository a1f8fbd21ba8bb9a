"""A retracted request comes back with exactly the KV it had: to host memory when it leaves, back when it is admitted.

Leaving, the row is saved but for the entry of the newest token that SGLang knows (under overlap that entry is there,
without overlap it is not yet). Coming back, the saved entries get slots, beside what the tree still holds of the
prompt, and that one token is prefilled: SGLang's own way to get the next token out of a row. Recurrent layers go on
from the request's state, saved with the row.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch

from sglang_rpc.contract.sglang.memory import HybridReqToTokenPool, ReqToTokenPool
from sglang_rpc.contract.sglang.requests import PauseGenerationReqInput, Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import AROUND, BEFORE, hook
from sglang_rpc.hooks import backups, decode_retraction, reuse, rows, unresumable
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of
from sglang_rpc.memory.host_backup import Backup
from sglang_rpc.runtime.pages import ceil_align
from sglang_rpc.runtime.request_state import RequestState, Saved


@hook(
    AROUND,
    "sglang.srt.managers.schedule_batch.release_req",
    "every retraction and preemption releases the row here; its KV is saved before",
)
def back_up(
    original: Callable[..., bool],
    *,
    req: Req,
    req_to_token_pool: ReqToTokenPool,
    offload_kv: bool = True,
    **kwargs: object,
) -> bool:
    """AROUND schedule_batch.release_req: save the row before it is released.

    Returns False, upon which SGLang ends the request with 503, if it can neither be restored nor prefilled again.
    `offload_kv=False` means that the KV is unwanted: by an abort, which has a reason of its own, or by a pause with
    mode `retract`, which queues the request next, where the same is asked.
    """
    release = partial(original, req=req, req_to_token_pool=req_to_token_pool, offload_kv=offload_kv, **kwargs)
    runtime = runtime_of(req_to_token_pool)
    if runtime is None:
        return release()
    state, saved = req.rpc, None
    if state is not None:
        if offload_kv and not req.finished():
            backup = backups.save(runtime, req, state)
            saved = None if backup is None else state.save(backup)
            if runtime.decode_server:
                decode_retraction.keep(runtime, req)
        state.totals.retracted()
    resumable = release()
    if state is not None and saved is not None:
        state.hooks.saved = saved
    elif req.to_finish is not None:
        reuse.give_back(req)  # it ends, and nothing is computed again
    elif len(req.output_ids) > 0 or not offload_kv:  # else it comes back as it came
        reuse.revert(req, reuse.NO_BACKUP if offload_kv else reuse.PAUSED)
    runtime.report_backups()
    return resumable and not (offload_kv and unresumable.is_unresumable(runtime, req))


@hook(
    BEFORE,
    "sglang.srt.managers.scheduler.Scheduler._release_aborted_request",
    "every request that is aborted while it waits passes here",
)
def forget_aborted(scheduler: Scheduler, req: Req) -> None:
    """BEFORE Scheduler._release_aborted_request: a waiting request will not come back; a session reads its ids."""
    runtime = runtime_of(scheduler)
    if runtime is not None:
        backups.forget(runtime, req)
        if not req.kv.holds_kv:
            reuse.give_back(req)


@hook(
    BEFORE,
    "sglang.srt.managers.scheduler.Scheduler.pause_generation",
    "after a pause with mode retract, every KV entry must be computed anew",
)
def forget_on_pause(scheduler: Scheduler, recv_req: PauseGenerationReqInput) -> None:
    """BEFORE Scheduler.pause_generation: mode `retract` promises that every KV entry is computed again.

    It runs in the scheduler's thread, between two steps, so that nobody else reads the queue while it is rebuilt.
    """
    runtime = runtime_of(scheduler)
    if runtime is None or recv_req.mode != "retract":
        return
    waiting, scheduler.waiting_queue = scheduler.waiting_queue, []
    for req in waiting:
        backups.forget(runtime, req)
        reuse.revert(req, reuse.PAUSED)
        if not unresumable.end_if_unresumable(runtime, req):
            scheduler.waiting_queue.append(req)


def slots_needed(runtime: SchedulerRPC, req: Req, saved: Saved) -> int:
    """Slots that restoring `req` takes, beside what the tree holds of its prompt."""
    return ceil_align(saved.backup.tokens - req.prefix_len, runtime.page_size)


def restore(runtime: SchedulerRPC, req: Req, state: RequestState, saved: Saved) -> bool:
    """Give `req`, matched and locked in the tree, a row with its saved entries, ready for its newest token's prefill.

    Returns False, with nothing changed, if rows, slots, state slots or query slots lack.
    """
    scheduler, backup, matched = runtime.scheduler, saved.backup, req.prefix_len
    assert matched <= len(req.origin_input_ids), "what it generated comes from its backup"
    entries, needed = backup.tokens, slots_needed(runtime, req, saved)
    pool, allocator = scheduler.req_to_token_pool, scheduler.token_to_kv_pool_allocator
    if pool.available_size() == 0:
        return False
    if backup.queries is not None and not runtime.ring.free:
        # Intervals below the window would hold every slot for good: the next that is compressed gives its own.
        runtime.compressor.recorder.keeps_free = True
        return False
    if runtime.backups.has_states and not _room_for_state(scheduler, req):
        return False
    allocator.evict_to_free_tokens(scheduler.tree_cache, needed)
    slots = allocator.alloc(needed)
    if slots is None:
        return False
    slots = slots[: entries - matched]
    prefix = scheduler.tree_cache.prefix_device_indices(req) if matched else slots[:0]
    # The forward in flight may still belong to the last owners of all that is written from here on: it may read their
    # row, write into slots that have been freed since, and record queries in a query slot that has been given back.
    runtime.fence()
    pool.alloc([req])
    row = rows.row_of(req)
    pool.write((row, slice(0, entries)), torch.cat([prefix.to(slots.dtype), slots]).to(torch.int32))
    req.kv.kv_committed_len = req.kv.kv_allocated_len = req.prefix_len = entries
    # As many ids as the row has entries, the newest last: SGLang prefills what stands after `prefix_len`.
    req.full_untruncated_fill_ids = (req.origin_input_ids + req.output_ids)[:entries] + req.output_ids[-1:]

    runtime.backups.load(backup, matched, slots.long())
    if runtime.backups.has_states:
        _load_state(runtime, req, backup)
    state.restore(saved)
    if backup.queries is not None:
        slot = runtime.compressor.recorder.resume(state.recording, row, saved.recorded_since)
        runtime.backups.load_queries(backup, runtime.ring.of(slot))
    if runtime.speculative is not None:
        runtime.speculative.evict(row, state.evicted)
        if backup.queries is not None:  # its window is recorded for a date, at which it is polled
            runtime.speculative.stop_at(row, state.clock.check_at)
    return True


def _room_for_state(scheduler: Scheduler, req: Req) -> bool:
    from sglang.srt.mem_cache.allocation import ensure_mamba_capacity

    return bool(ensure_mamba_capacity(scheduler.req_to_token_pool, [req], scheduler.tree_cache))


def _load_state(runtime: SchedulerRPC, req: Req, backup: Backup) -> None:
    """Give `req`, which has a row, its own state, instead of the prompt's, or none, that its prefill began with."""
    req.kv.mamba_cow_src_index, req.kv.mamba_needs_clear = None, False
    assert req.kv.mamba_pool_idx is not None, "a row is taken together with a state slot"
    runtime.backups.load_state(backup, req.kv.mamba_pool_idx.view(1))


def load_nothing_back(req: Req) -> None:
    """Leave in host memory what the tree has there (HiCache): a restored row is whole, and has no place for it.

    SGLang counts it anew when the request is matched again.
    """
    req.host_hit_length = req.swa_host_hit_length = req.mamba_host_hit_length = 0


def restore_ids(req: Req) -> None:
    """Give a restored request, whose step has been built from the shortened ids, its whole text back."""
    if req.rpc is not None and req.rpc.evicted and req.extend_end == len(req.full_untruncated_fill_ids):
        req.full_untruncated_fill_ids = req.origin_input_ids + req.output_ids


def undo_restore(runtime: SchedulerRPC, req: Req, state: RequestState, matched: int) -> None:
    """Take `restore` back: SGLang has not admitted the request after all. It keeps its backup."""
    tree, pool = runtime.scheduler.tree_cache, runtime.scheduler.req_to_token_pool
    # Nothing was launched with the row, and the next forward waits for this stream, where the loads are.
    tree.free_kv_row(req.kv, [(matched, req.kv.kv_allocated_len)])
    if runtime.backups.has_states:
        cast("HybridReqToTokenPool", pool).free_mamba_cache(req)
    pool.free(req)
    req.kv.mark_kv_released()
    req.kv.kv_committed_len = 0
    req.prefix_len = matched  # as `restore` found it
    req.full_untruncated_fill_ids = req.full_untruncated_fill_ids[:0]  # SGLang builds it again
    state.reset()


def admitted(runtime: SchedulerRPC, req: Req, state: RequestState) -> None:
    """The restored request runs: its backup is no longer needed."""
    state.totals.came_back()
    runtime.compressor.counters.restored += 1
    backups.forget(runtime, req)
