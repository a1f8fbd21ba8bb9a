"""What a user sees: a receipt in each response that asked or was compressed, a block in /server_info."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from sglang_rpc.contract.targets import AFTER, AROUND, hook
from sglang_rpc.hooks.rows import steps
from sglang_rpc.hooks.runtime import runtime_of, state_of

if TYPE_CHECKING:
    from sglang_rpc.contract.sglang.requests import Req
    from sglang_rpc.contract.sglang.scheduler import (
        GetInternalStateReqOutput,
        InternalStateController,
        OutputStreamer,
        Scheduler,
    )
    from sglang_rpc.contract.sglang.server import ReqState, TokenizerManager
    from sglang_rpc.runtime.known_texts import Prompt

#: A JSON object of a response.
Json: TypeAlias = dict[str, Any]

KEY = "rpc"

#: Fields of `internal_states[i].rpc` in /server_info and what they mean, in their order. Counts are since the start.
SERVER_INFO_FIELDS = {
    "config": "the server's settings",
    "scope_in_effect": "`all` where no think tokens are known, else the setting",
    "scoring": "the implementation that scores: triton, flashinfer or reference",
    "query_slots": "requests whose last R queries can be held at once",
    "query_slots_needed": "requests that can be due in the same step",
    "query_slots_in_use": "requests whose queries are held now",
    "query_slots_waiting": "requests whose compression waits for a query slot now",
    "query_ring_bytes": "memory of the query ring",
    "host_backup_bytes": "host memory that holds the KV of retracted requests now, in whole chunks",
    "host_backup_capacity_bytes": "host memory that was set aside for it at the start",
    "memory_pressure": "whether the pool is under memory pressure now, with --rpc-when pressure",
    "pressure_crossings": "times memory pressure has begun",
    "compressions": "compressions applied",
    "evicted": "KV entries evicted, counted once per position, not per layer",
    "slots_freed": "pool slots given back, in whole pages",
    "late": "compressions after their due date",
    "early": "compressions before their due date, to spare a retraction",
    "slot_waits": "steps in which a compression was put off because no query slot was free",
    "requests_compressed": "requests compressed at least once",
    "restored": "retracted requests that came back with the KV they had",
    "backups_refused": "retracted requests for whose KV the host backups had no room",
    "reused_requests": "requests that took over compressed KV of earlier ones",
    "reused_tokens": "tokens of their prompts that this KV stood for",
    "stale_aliases": "compressed texts that were asked for and had been evicted",
    "speculative_cuts": "steps of requests that were cut at a due date, where the server speculates",
    "aliases": "compressed texts that a request may take over, as far as they are not evicted",
}


@hook(
    AFTER,
    "sglang.srt.managers.scheduler.Scheduler.get_output_streamer_class",
    "SGLang's own extension point for per-request output fields",
)
def streamer_with_receipts(streamer_class: type[OutputStreamer], scheduler: Scheduler) -> type[OutputStreamer]:
    """AFTER Scheduler.get_output_streamer_class, once per scheduler process."""
    return _with_receipts(streamer_class)


@cache
def _with_receipts(streamer_class: type[OutputStreamer]) -> type[OutputStreamer]:
    if TYPE_CHECKING:
        from sglang_rpc.contract.sglang.scheduler import OutputStreamer as Base
    else:
        Base = streamer_class

    class StreamerWithReceipts(Base):
        __slots__ = ()
        has_additional_customized_info = True

        def build_additional_customized_info(self, reqs: list[Req]) -> dict[str, Sequence[object]]:
            result = super().build_additional_customized_info(reqs)
            receipts = [_receipt(req) for req in reqs]
            # Without any, the message is SGLang's own.
            return {**result, KEY: receipts} if any(receipts) else result

    return StreamerWithReceipts


def _receipt(req: Req) -> list[Json]:
    """SGLang wants a list per request; empty for none."""
    state = state_of(req)
    if state is None or not req.finished():
        return []
    if not (state.options.asked or state.totals.compressions or state.totals.reused or state.refused):
        return []
    if state.stride > 1:
        state.totals.stepped(steps(req))
    output_ids = req.output_ids_through_stop
    if state.segment is not None and not state.totals.compressions:
        state.segment.advance(output_ids, len(output_ids))  # what it thought since the last poll, for the reason
    receipt = state.receipt(len(output_ids))
    if state.hooks.trace is not None:
        assert req.finished_reason is not None
        state.hooks.trace.finish(output_ids, req.finished_reason.to_json(), receipt)
        state.hooks.trace = None
    return [receipt]


@hook(
    AROUND,
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
    "meta_info.rpc is one receipt, not SGLang's per-chunk list",
)
def add_receipt(
    original: Callable[..., None],
    manager: TokenizerManager,
    meta_info: Json,
    state: ReqState,
    customized_info: dict[str, list[Any]],
    index: int,
    reason: Json | None,
) -> None:
    """AROUND TokenizerManager.update_request_meta_info, once per chunk of a response, in the server's process: the
    receipt itself instead of a list of them."""
    others = {key: values for key, values in customized_info.items() if key != KEY}
    original(manager, meta_info, state, others, index, reason)
    receipts = customized_info.get(KEY)
    if receipts and receipts[index]:
        prompt, receipt = prompt_of(state), receipts[index][0]
        meta_info[KEY] = receipt | ({} if prompt is None else {"reused_text": prompt.reused})
        if prompt is not None and any(receipt.get(field) for field in ("compressions", "reused", "continued")):
            state.obj.rpc_prompt = replace(prompt, compressed=True)


def prompt_of(state: ReqState) -> Prompt | None:
    """What a request was asked with, where it is tokenized; None without --rpc-reuse-text, or if that was no text."""
    prompt: Prompt | None = vars(state.obj).get("rpc_prompt")
    return prompt


@hook(
    AFTER,
    "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController.get_internal_state",
    "/server_info shows the configuration and what has been done",
)
def add_server_info(result: GetInternalStateReqOutput, controller: InternalStateController, recv_req: object) -> None:
    """AFTER SchedulerInternalStateController.get_internal_state, once per /server_info, in the scheduler's thread."""
    runtime = runtime_of(controller.scheduler)
    if runtime is None:
        return
    result.internal_state[KEY] = {
        "config": runtime.config.as_dict(),
        "scope_in_effect": runtime.scope_in_effect,
        "scoring": runtime.compressor.scoring,
        "query_slots": runtime.ring.slots,
        "query_slots_needed": runtime.query_slots.needed,
        "query_slots_in_use": runtime.ring.in_use,
        "query_slots_waiting": runtime.compressor.recorder.waiting,
        "query_ring_bytes": runtime.ring.nbytes,
        "host_backup_bytes": runtime.backups.used,
        "host_backup_capacity_bytes": runtime.backups.limit,
        "memory_pressure": runtime.watermarks.under_pressure,
        "pressure_crossings": runtime.watermarks.crossings,
        **asdict(runtime.compressor.counters),
        "aliases": len(runtime.aliases),
    }
