"""Retracted requests that the pool can never take back: they end with HTTP 503 and a sentence, instead of blocking the
queue."""

import logging
from collections.abc import Callable

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import AFTER, AROUND, hook
from sglang_rpc.hooks import backups, limits, rows
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of
from sglang_rpc.runtime.admission import Plan

logger = logging.getLogger(__name__)


def is_unresumable(runtime: SchedulerRPC, req: Req) -> bool:
    """Whether a retracted request has outgrown the pool, so that it can neither be restored nor prefilled again.

    One that can, but not to the length it may have, is limited to what the empty pool has room for. A length that is
    known (`ignore_eos`) is not, if it is known too what of it is compressed (scope `all`).
    """
    state, output, prompt = req.rpc, len(req.output_ids), len(req.origin_input_ids)
    if state is None or output == 0:
        return False
    generated = rows.known(req, state)
    if state.hooks.ended is not None:
        return True  # preempted: asked when it was released, and again when it is queued, its backup dropped
    if state.segment is not None:
        state.segment.advance(req.output_ids, output)  # it may have begun to think since the last poll
    saved = state.hooks.saved
    wanted = max(0, req.sampling_params.max_new_tokens - output)

    def plan(tokens: int) -> Plan:
        if saved is None:
            return state.plan(generated, tokens, True, prompt)
        return state.plan_saved(saved, generated, tokens, True, prompt)

    tokens = limits.most(runtime.scheduler, wanted, plan)
    if tokens >= wanted:
        return False
    if tokens < 1 or (req.sampling_params.ignore_eos and state.segment is None):
        state.hooks.ended = sentence(runtime, tokens=output, saved=saved is not None or state.hooks.kept is not None)
        backups.forget(runtime, req)
        return True
    limits.lower(req, output + tokens)
    return False


def sentence(runtime: SchedulerRPC, tokens: int, saved: bool) -> str:
    """Why a request retracted after `tokens`, with a backup or not, cannot go on, and what would help.

    A retry alone may meet the same end.
    """
    slots = runtime.scheduler.max_total_num_tokens
    if saved:
        return (
            f"Retracted after {tokens} tokens: to go on, it needs more than the {slots} slots of the KV pool; "
            "ask for fewer tokens, or start the server with more memory."
        )
    used, limit = runtime.backups.used / 1e9, runtime.backups.limit / 1e9
    why, larger = f"{used:.2f} of {limit:.2f} GB of host backups in use", "a larger --rpc-host-backup-gb or "
    if runtime.never_backed_up:
        why, larger = f"none are made {runtime.never_backed_up}", ""
    return (
        f"Retracted after {tokens} tokens without a KV backup ({why}): "
        f"computed again, uncompressed, it needs more than the {slots} slots of the KV pool; ask for fewer "
        f"tokens, or start the server with {larger}more memory."
    )


@hook(
    AFTER,
    "sglang.srt.managers.schedule_batch.ScheduleBatch.retract_decode",
    "a request that cannot come back ends with 503; SGLang's message promises that a retry helps",
)
def explain(
    result: tuple[list[Req], float, list[Req]], _batch: ScheduleBatch, *_args: object, **_kwargs: object
) -> None:
    """AFTER ScheduleBatch.retract_decode: requests that `is_unresumable` ended say why.

    SGLang's own message asks to retry later, which can end the same way. The scheduler sends `to_finish` after this
    returns.
    """
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    _retracted, _ratio, ended = result
    for req in ended:
        if req.rpc is not None and req.rpc.hooks.ended is not None:
            req.to_finish = FINISH_ABORT(req.rpc.hooks.ended, status_code=503)


@hook(
    AROUND,
    "sglang.srt.managers.scheduler.Scheduler._add_request_to_queue",
    "a retracted request that can never be prefilled again would block the queue forever",
)
def queue_if_resumable(
    original: Callable[..., None], scheduler: Scheduler, req: Req, *args: object, **kwargs: object
) -> None:
    """AROUND Scheduler._add_request_to_queue: preemption and pauses queue what they retract without a question."""
    runtime = runtime_of(scheduler)
    if runtime is None or not end_if_unresumable(runtime, req):
        original(scheduler, req, *args, **kwargs)


def end_if_unresumable(runtime: SchedulerRPC, req: Req) -> bool:
    """End `req` with 503 if it waits and can never be resumed; returns whether it ended."""
    state = req.rpc
    if state is None or not req.is_retracted or not is_unresumable(runtime, req):
        return False
    from sglang.srt.managers.scheduler import _make_abort_req

    scheduler, message = runtime.scheduler, state.hooks.ended
    reason = {"type": "abort", "status_code": 503, "message": message}
    # What SGLang itself does with a request that is aborted while it waits; this one is not in the queue,
    # and RPC refuses the Rust server.
    scheduler._release_aborted_request(req)
    scheduler.beam_coordinator.retire_group(req)
    scheduler.ipc_channels.send_to_tokenizer.send_output(_make_abort_req(req, finished_reason=reason), req)
    logger.warning("RPC %s: %s", req.rid, message)
    return True
