"""Memory is short: record the windows of requests that could be compressed early, and compress them before any is
retracted."""

from collections.abc import Sequence

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import AFTER, hook
from sglang_rpc.contract.windows import full_slots_free
from sglang_rpc.hooks import result_in_flight, rows
from sglang_rpc.hooks.compaction import apply_compressions
from sglang_rpc.hooks.limits import refit
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of
from sglang_rpc.runtime.decision import early_gain
from sglang_rpc.runtime.pressure import by_slots_per_entry, factors, slots_freed
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.types import NEVER, Compression

#: Steps of warning beyond the R that it takes to record a window.
MARGIN = 4


def free_slots(scheduler: Scheduler) -> int:
    """Pool slots that can be had: free, or held by nobody but the tree. Of those that compressions free, where layers
    with sliding windows have a pool of their own."""
    return full_slots_free(scheduler.token_to_kv_pool_allocator) + scheduler.tree_cache.evictable_size()


def watch(runtime: SchedulerRPC, batches: list[ScheduleBatch]) -> None:
    """Once a step, before due compressions are looked for: poll every row if memory pressure has begun or ended, and
    record windows ahead of time if the pool may run out before one would be complete."""
    free = free_slots(runtime.scheduler)
    if runtime.config.when == "pressure":
        _update_watermarks(runtime, free, batches)
    if runtime.config.pressure == "off":
        return
    count = len(_requests(runtime, batches)) if runtime.pipelined else sum([len(batch.reqs) for batch in batches])
    # Slots that a request takes while its window is recorded, and in the steps of warning.
    margin = runtime.config.window + MARGIN * runtime.stride
    if free < count * margin:
        runtime.recording_ahead = [state for state in runtime.recording_ahead if state.recording.ahead]
        if len(runtime.recording_ahead) == runtime.ring.slots and runtime.compressor.recorder.waiting:
            # None is left for those that are due, who would wait until it is used, perhaps for an interval.
            runtime.compressor.stop_recording_ahead(runtime.recording_ahead.pop())
        # Not whose prefill goes on, in chunks: their queries are recorded only once they decode.
        chunked = runtime.scheduler.chunked_req
        decoding = rows.decoding(_requests(runtime, batches))
        _record_ahead(runtime, [(req, state) for req, state in decoding if req is not chunked], margin)
    elif runtime.recording_ahead:
        for state in runtime.recording_ahead:
            runtime.compressor.stop_recording_ahead(state)
        runtime.recording_ahead.clear()


def _requests(runtime: SchedulerRPC, batches: list[ScheduleBatch]) -> list[Req]:
    """Each once. A pipeline's micro-batches share the pool: the one that is planned must see all."""
    return list(dict.fromkeys([*(req for batch in batches for req in batch.reqs), *runtime.in_micro_batches()]))


def _update_watermarks(runtime: SchedulerRPC, free: int, batches: list[ScheduleBatch]) -> None:
    usage = 1 - free / runtime.scheduler.max_total_num_tokens
    if not runtime.watermarks.update(usage):
        return
    runtime.compressor.dates_kept = runtime.watermarks.under_pressure
    runtime.metrics.memory_pressure(runtime.watermarks.under_pressure)
    for _, state in rows.decoding(_requests(runtime, batches)):
        state.clock.check_now()


def _record_ahead(runtime: SchedulerRPC, reqs: Sequence[tuple[Req, RequestState]], margin: int) -> None:
    """Record the windows of the requests that would free most, until they could feed every request for a while."""
    wanted = 2 * len(reqs) * margin
    spare = (runtime.ring.slots + 1) // 2  # the others are for those that are due
    factor = _highest(runtime.config) / runtime.config.ratio
    gains = [
        (early_gain(state, rows.generated(req, state), state.options.ratio * factor), req, state) for req, state in reqs
    ]
    for gain, req, state in sorted(gains, key=lambda each: each[0], reverse=True):
        if wanted <= 0 or gain <= 0:
            break
        # Who waits for a slot gets it in turn, not in this order.
        if state.recording.slot is None and state.recording.turn == NEVER:
            full = len(runtime.recording_ahead) >= spare
            known, lag = rows.generated(req, state), rows.lag(runtime, req)
            if full or not runtime.compressor.record_ahead(state, rows.row_of(req), known, lag):
                break
            runtime.recording_ahead.append(state)
        wanted -= gain


def _highest(config: RPCConfig) -> float:
    """The highest ratio that a request of the server's ratio may be compressed at before a retraction."""
    return config.highest_ratio if config.pressure == "ratio" else config.ratio


@hook(
    AFTER,
    "sglang.srt.managers.schedule_batch.ScheduleBatch.check_decode_mem",
    "the last question before a retraction; what is freed here counts in its answer",
)
def compress_before_retracting(
    enough: bool, batch: ScheduleBatch, selected_indices: list[int] | None = None
) -> bool | None:
    """AFTER ScheduleBatch.check_decode_mem, which asks whether the next decode step of `batch` fits the pool.

    If not, and the scheduler is about to retract, compress those whose window is recorded, in order of slots freed
    per evicted entry; all of them at their own ratio before any at a higher one. The retraction's own questions,
    about a selection of the batch, are left alone.

    Raises ResultInFlight if that is not enough, and a retraction now would throw away what can't be computed again; or
    if a result in flight has to tell first how long those are that may be compressed.
    """
    runtime = runtime_of(batch.req_to_token_pool)
    if runtime is None or selected_indices is not None:
        return None
    if not enough and runtime.config.pressure != "off":
        result_in_flight.check_lengths(runtime, batch)
        for factor in factors(runtime.config.ratio, _highest(runtime.config)):
            _evict_early(runtime, batch, factor)
            enough = _fits(batch)
            if enough:
                break
    result_in_flight.check(runtime, batch, enough)
    return enough or None


def _fits(batch: ScheduleBatch) -> bool:
    needed = batch.new_tokens_required_next_decode()
    return batch.token_to_kv_pool_allocator.check_decode_capacity(
        num_tokens=needed, tree_cache=batch.tree_cache, requests=batch.reqs, spec_algorithm=batch.spec_algorithm
    )


def _evict_early(runtime: SchedulerRPC, batch: ScheduleBatch, factor: float) -> None:
    """Compress requests of `batch` at `factor` times their own ratio, until its next step fits or none is left."""
    needed = batch.new_tokens_required_next_decode() - free_slots(runtime.scheduler)
    candidates: dict[int, tuple[int, Req, Compression]] = {}
    for index, req in enumerate(batch.reqs):
        state = req.rpc
        if state is None:
            continue
        row, generated = rows.row_of(req), rows.generated(req, state)
        state.read(req.output_ids, generated)
        refit(runtime.scheduler, req, state, generated)  # it may have seen the thinking end
        ratio = state.options.ratio * factor
        c = runtime.compressor.early(state, row, req.origin_input_ids, generated, req.output_ids, ratio)
        if c is not None:
            candidates[row] = index, req, c
    chosen = []
    for c in by_slots_per_entry([c for _, _, c in candidates.values()], runtime.page_size):
        if needed <= 0:
            break
        chosen.append(candidates[c.row])
        needed -= slots_freed(c, runtime.page_size, rows.ahead(runtime, candidates[c.row][1]))
    if chosen:
        apply_compressions(runtime, batch, chosen)
        runtime.report_slots()
