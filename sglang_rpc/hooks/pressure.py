"""Memory is short: record those who could give way, and compress them before anybody is retracted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_rpc.config import RPCConfig
from sglang_rpc.hooks import rows
from sglang_rpc.hooks.compaction import apply_compressions
from sglang_rpc.hooks.limits import refit
from sglang_rpc.hooks.resume import refuse_to_lose_result
from sglang_rpc.runtime.pressure import by_slots_per_entry, factors, slots_freed

#: Steps of warning beyond the R that it takes to record a window.
MARGIN = 4


def free_slots(scheduler: Any) -> int:
    """Pool slots that can be had: free, or held by nobody but the tree."""
    return scheduler.token_to_kv_pool_allocator.available_size() + scheduler.tree_cache.evictable_size()


def watch(runtime: Any, batches: list[Any]) -> None:
    """Once a step, before due compressions are looked for: wake every row if memory pressure has
    begun or ended, and have windows recorded if the pool may run out before one would be complete."""
    free = free_slots(runtime.scheduler)
    if runtime.config.when == "pressure":
        _update_watermarks(runtime, free, batches)
    if runtime.config.pressure != "off":
        if free < sum(len(batch.reqs) for batch in batches) * (runtime.config.window + MARGIN):
            runtime.pre_recording = [state for state in runtime.pre_recording if state.pre_recording]
            # Not whose prefill goes on, in chunks: their queries are recorded only once they decode.
            chunked = runtime.scheduler.chunked_req
            _pre_record(runtime, [req for req in rows.decoding(batches) if req is not chunked])
        elif runtime.pre_recording:
            for state in runtime.pre_recording:
                runtime.compressor.stop_pre_recording(state)
            runtime.pre_recording.clear()


def _update_watermarks(runtime: Any, free: int, batches: list[Any]) -> None:
    usage = 1 - free / runtime.scheduler.max_total_num_tokens
    if not runtime.watermarks.update(usage):
        return
    runtime.compressor.under_pressure = runtime.watermarks.under_pressure
    runtime.metrics.under_pressure(runtime.watermarks.under_pressure)
    for req in rows.decoding(batches):
        req.rpc.check_at = 0


def _pre_record(runtime: Any, reqs: Sequence[Any]) -> None:
    """Record the windows of the requests that would free most, until they could feed every request for a while."""
    wanted = 2 * len(reqs) * (runtime.config.window + MARGIN)
    spare = (runtime.ring.slots + 1) // 2  # the others are for those that are due
    factor = _highest(runtime.config) / runtime.config.ratio
    gains = [(req.rpc.early_gain(rows.generated(req), req.rpc.options.ratio * factor), req) for req in reqs]
    for gain, req in sorted(gains, key=lambda pair: pair[0], reverse=True):
        state = req.rpc
        if wanted <= 0 or gain <= 0:
            break
        if state.slot is None:
            if len(runtime.pre_recording) >= spare or not runtime.compressor.pre_record(
                state, req.kv.req_pool_idx, rows.generated(req)
            ):
                break
            runtime.pre_recording.append(state)
        wanted -= gain


def _highest(config: RPCConfig) -> float:
    """The highest ratio that a request of the server's ratio may be compressed at before a retraction."""
    return config.highest_ratio if config.pressure == "ratio" else config.ratio


def compress_before_retracting(enough: bool, batch: Any, selected_indices: list[int] | None = None) -> bool | None:
    """AFTER ScheduleBatch.check_decode_mem, which asks whether the next decode step of `batch` fits the pool.

    If not, and the scheduler is about to retract, compress those whose window is recorded, those that free most first;
    all of them at their own ratio before any at a higher one. The retraction's own questions, about a selection of
    the batch, are left alone.

    Raises ResultInFlight if that is not enough, and a retraction now would throw away what can't be computed again.
    """
    runtime = getattr(batch.req_to_token_pool, "rpc", None)
    if runtime is None or selected_indices is not None:
        return None
    if not enough and runtime.config.pressure != "off":
        for factor in factors(runtime.config.ratio, _highest(runtime.config)):
            _evict_early(runtime, batch, factor)
            enough = _fits(batch)
            if enough:
                break
    if runtime.result_awaited is not None and (runtime.result_awaited or not enough):
        refuse_to_lose_result(runtime, batch)
    return enough or None


def _fits(batch: Any) -> bool:
    needed = batch.new_tokens_required_next_decode()
    return batch.token_to_kv_pool_allocator.check_decode_capacity(
        num_tokens=needed, tree_cache=batch.tree_cache, requests=batch.reqs, spec_algorithm=batch.spec_algorithm
    )


def _evict_early(runtime: Any, batch: Any, factor: float) -> None:
    """Compress requests of `batch` at `factor` times their own ratio, until its next step fits or none is left."""
    needed = batch.new_tokens_required_next_decode() - free_slots(runtime.scheduler)
    found = {}
    for index, req in enumerate(batch.reqs):
        if req.rpc is not None:
            ratio = req.rpc.options.ratio * factor
            c = runtime.compressor.early(
                req.rpc, req.kv.req_pool_idx, req.origin_input_ids, rows.generated(req), req.output_ids, ratio
            )
            refit(runtime.scheduler, req, rows.generated(req))  # it has read on, and may have seen the thinking end
            if c is not None:
                found[c.row] = index, req, c
    chosen = []
    for c in by_slots_per_entry([c for _, _, c in found.values()], runtime.page_size):
        if needed <= 0:
            break
        chosen.append(found[c.row])
        needed -= slots_freed(c, runtime.page_size)
    if chosen:
        apply_compressions(runtime, batch, chosen)
        runtime.report_slots()
