"""A retracted request comes back with exactly the KV it had: to host memory when it leaves, back when it is admitted.

Leaving, the row is saved but for the entry of the newest token that SGLang knows (under overlap that entry is there,
without overlap it is not yet). Coming back, the saved entries get slots, beside what the tree still holds of the
prompt, and that one token is prefilled: SGLang's own way to get the next token out of a row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from sglang_rpc.hooks import limits

logger = logging.getLogger(__name__)


def result_in_flight(runtime: Any, reqs: Any) -> bool:
    """Whether one of `reqs` has been compressed in this step, while the result of its last forward is on its way.

    SGLang throws that result away if it retracts the request, and computes its token again; but that forward attended
    to what has now been evicted.
    """
    if not getattr(runtime.scheduler, "result_queue", None):
        return False
    return any(req.rpc is not None and req.rpc.compacted_in == runtime.step for req in reqs)


class ResultInFlight(Exception):
    """A retraction has to wait: in the next step the result is there."""


def refuse_to_lose_result(runtime: Any, batch: Any) -> None:
    """Raises ResultInFlight if a retraction might take a request of `batch` whose result can't be computed again."""
    if result_in_flight(runtime, batch.reqs):
        raise ResultInFlight


def wait_for_result(original: Callable, scheduler: Any, batch: Any) -> Any:
    """AROUND Scheduler.update_running_batch: launch nothing in this step if it would retract a request whose result
    can't be computed again. Nothing has been done until then but that ended requests have left the batch."""
    from sglang.srt.managers import scheduler as module

    runtime = getattr(scheduler, "rpc", None)
    if runtime is None or not getattr(scheduler, "result_queue", None):
        return original(scheduler, batch)
    testing = bool(module.TEST_RETRACT and scheduler.forward_ct % module.TEST_RETRACT_INTERVAL == 0)
    runtime.result_awaited = testing
    try:
        return original(scheduler, batch)
    except ResultInFlight:
        batch.batch_is_full = False
        return None
    finally:
        runtime.result_awaited = None


def back_up(original: Callable, *, req: Any, req_to_token_pool: Any, offload_kv: bool = True, **kwargs: Any) -> bool:
    """AROUND schedule_batch.release_req: save the row before it is released.

    Returns False, upon which SGLang ends the request with 503, if it can neither be restored nor prefilled again.
    `offload_kv=False` means that the KV is unwanted: a pause with mode `retract`, an abort.
    """
    runtime = getattr(req_to_token_pool, "rpc", None)
    state = req.rpc
    saved, live = None, None
    if runtime is not None and state is not None:
        if offload_kv and not req.finished():
            saved, live = _save(runtime, req), state.live()
        state.totals.retractions += 1
    result = original(req=req, req_to_token_pool=req_to_token_pool, offload_kv=offload_kv, **kwargs)
    if saved is not None:
        state.backup, state.to_restore = saved, live
    if runtime is not None:
        runtime.report_backups()
    return result and not (runtime is not None and unresumable(runtime, req))


def _save(runtime: Any, req: Any) -> Any:
    """The backup of `req`'s row; None if there is nothing worth one, or no room for it."""
    state, prompt = req.rpc, len(req.origin_input_ids)
    entries = prompt + len(req.output_ids) - 1 - state.evicted
    if not (state.active or state.evicted) or len(req.output_ids) == 0 or not req.kv.holds_kv:
        return None
    if not entries <= req.kv.kv_committed_len <= entries + 1 or req.input_embeds is not None:
        return None  # still being prefilled
    if req.return_logprob and 0 <= req.logprob_start_len < prompt:
        return None  # SGLang wants the prompt's log probabilities again, and so its prefill
    runtime.fence()
    row = runtime.scheduler.req_to_token_pool.req_to_token[req.kv.req_pool_idx, :entries].long()
    queries = None if state.slot is None or state.pre_recording else runtime.ring.buffer[:, state.slot]
    backup = runtime.backups.save(row, prompt, (req.extra_key, tuple(req.origin_input_ids)), queries)
    if backup is None:
        runtime.compressor.counters.backups_refused += 1
        logger.warning(
            "RPC %s: no room for its KV among the host backups (%.2f of %.2f GB in use); it will be prefilled again",
            req.rid, runtime.backups.used / 1e9, runtime.backups.limit / 1e9,
        )  # fmt: skip
    return backup


def forget(runtime: Any, req: Any) -> None:
    """Drop `req`'s backup, if it has one."""
    state = req.rpc
    if state is not None and state.backup is not None:
        runtime.backups.drop(state.backup)
        state.backup = state.to_restore = None
        runtime.report_backups()


def forget_aborted(scheduler: Any, req: Any) -> None:
    """BEFORE Scheduler._release_aborted_request: a waiting request will not come back."""
    runtime = getattr(scheduler, "rpc", None)
    if runtime is not None:
        forget(runtime, req)


def forget_on_pause(scheduler: Any, recv_req: Any) -> None:
    """BEFORE Scheduler.pause_generation: mode `retract` promises that every KV entry is computed again."""
    runtime = getattr(scheduler, "rpc", None)
    if runtime is None or recv_req.mode != "retract":
        return
    waiting, scheduler.waiting_queue = scheduler.waiting_queue, []
    for req in waiting:
        forget(runtime, req)
        if not _ended_as_unresumable(scheduler, req):
            scheduler.waiting_queue.append(req)


def unresumable(runtime: Any, req: Any) -> bool:
    """Whether a retracted request has outgrown the pool, so that it can neither be restored nor prefilled again.

    One that can, but not to the length it may have, is limited to what the empty pool has room for; a length that is
    known (`ignore_eos`) is not, if it is known too what of it is compressed (scope `all`).
    """
    state, generated, prompt = req.rpc, len(req.output_ids), len(req.origin_input_ids)
    if state is None or generated == 0:
        return False
    if state.segment is not None:
        state.segment.advance(req.output_ids, generated)  # it may have begun to think since the last look
    plan = state.plan if state.backup is None else state.plan_restored
    wanted = max(0, req.sampling_params.max_new_tokens - generated)
    tokens = limits.most(runtime.scheduler, wanted, lambda n: plan(generated, n, True, prompt))
    if tokens >= wanted:
        return False
    if tokens < 1 or (req.sampling_params.ignore_eos and state.segment is None):
        forget(runtime, req)
        return True
    limits.lower(req, generated + tokens)
    return False


def queue_if_resumable(original: Callable, scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND Scheduler._add_request_to_queue: preemption and pauses queue what they retract without a question."""
    if getattr(scheduler, "rpc", None) is not None and _ended_as_unresumable(scheduler, req):
        return None
    return original(scheduler, req, *args, **kwargs)


def _ended_as_unresumable(scheduler: Any, req: Any) -> bool:
    if not req.is_retracted or not unresumable(scheduler.rpc, req):
        return False
    from sglang.srt.managers.scheduler import _make_abort_req

    message = (
        f"Retracted after {len(req.output_ids)} tokens, and to go on it would need more than the "
        f"{scheduler.max_total_num_tokens} slots of the KV pool. Retry later."
    )
    reason = {"type": "abort", "status_code": 503, "message": message}
    scheduler._release_aborted_request(req)
    scheduler.beam_coordinator.retire_group(req)
    scheduler.send_abort_output(_make_abort_req(req, finished_reason=reason), req)
    logger.warning("RPC %s: %s", req.rid, message)
    return True


def slots_needed(runtime: Any, req: Any) -> int:
    """Slots that restoring `req` takes, beside what the tree holds of its prompt."""
    page = runtime.page_size
    return -(-(req.rpc.backup.tokens - req.prefix_len) // page) * page


def restore(runtime: Any, req: Any) -> bool:
    """Give `req`, matched and locked in the tree, a row with its saved entries, ready for its newest token's prefill.

    Returns False, with nothing changed, if rows, slots or query slots lack.
    """
    scheduler, state = runtime.scheduler, req.rpc
    backup, matched = state.backup, req.prefix_len
    assert matched <= len(req.origin_input_ids), "what it generated comes from its backup"
    needed, entries = slots_needed(runtime, req), backup.tokens
    pool, allocator = scheduler.req_to_token_pool, scheduler.token_to_kv_pool_allocator
    if pool.available_size() == 0 or (backup.queries is not None and not runtime.ring.free):
        return False
    allocator.evict_to_free_tokens(scheduler.tree_cache, needed)
    slots = allocator.alloc(needed)
    if slots is None:
        return False
    slots = slots[: entries - matched]
    prefix = scheduler.tree_cache.prefix_device_indices(req) if matched else slots[:0]
    pool.alloc([req])
    row = req.kv.req_pool_idx
    pool.write((row, slice(0, entries)), torch.cat([prefix.to(slots.dtype), slots]).to(torch.int32))
    req.kv.kv_committed_len = req.kv.kv_allocated_len = req.prefix_len = entries
    # As many ids as the row has entries, the newest last: SGLang prefills what stands behind `prefix_len`.
    req.full_untruncated_fill_ids = req.origin_input_ids + req.output_ids[-(entries + 1 - len(req.origin_input_ids)) :]

    runtime.fence()  # the last forward may still write into slots that have been freed since
    runtime.backups.load(backup, matched, slots.long())
    state.restore(state.to_restore)
    if backup.queries is not None:
        state.slot = runtime.ring.acquire(row)
        runtime.ring.buffer[:, state.slot] = backup.queries.to(runtime.ring.buffer.device, non_blocking=True)
    return True


def restore_ids(req: Any) -> None:
    """Give a restored request, whose step has been built from the shortened ids, its whole text back."""
    if req.rpc is not None and req.rpc.evicted and req.extend_end == len(req.full_untruncated_fill_ids):
        req.full_untruncated_fill_ids = req.origin_input_ids + req.output_ids


def undo_restore(runtime: Any, req: Any, matched: int) -> None:
    """Take `restore` back: SGLang has not admitted the request after all."""
    live = req.rpc.live()
    tree, pool = runtime.scheduler.tree_cache, runtime.scheduler.req_to_token_pool
    tree.free_kv_row(req.kv, [(matched, req.kv.kv_allocated_len)])
    pool.free(req)
    req.kv.mark_kv_released()
    req.kv.kv_committed_len = 0
    req.prefix_len = matched
    req.full_untruncated_fill_ids = req.full_untruncated_fill_ids[:0]  # SGLang builds it again
    req.rpc.reset()
    req.rpc.to_restore = live


def admitted(runtime: Any, req: Any) -> None:
    """The restored request runs: its backup is no longer needed."""
    req.rpc.totals.restored += 1
    runtime.compressor.counters.restored += 1
    forget(runtime, req)
