"""Before a scheduler's next step is prepared: compress what is due."""

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.memory import ReqToTokenPool
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import BEFORE, hook
from sglang_rpc.hooks import own_copy, pressure, reuse, rows
from sglang_rpc.hooks.compaction import apply_compressions
from sglang_rpc.hooks.limits import refit
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of, state_of
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.types import Compression


@hook(
    BEFORE,
    "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.free",
    "every row that ends, finished, aborted or retracted, gives its query slot back here",
)
@hook(
    BEFORE,
    "sglang.srt.disaggregation.decode.DecodeReqToTokenPool.free",
    "rows of a decode server end here, whose table is a class of its own",
)
def release_row(req_to_token_pool: ReqToTokenPool, owner: Req) -> None:
    """BEFORE ReqToTokenPool.free, or DecodeReqToTokenPool.free, once per row, in the scheduler's thread; the row still
    holds its request's slots.

    The owner may be a streaming session too, whose requests hold no query slot.
    """
    runtime, state = runtime_of(req_to_token_pool), state_of(owner)
    if runtime is not None and state is not None:
        runtime.compressor.release_slot(state)
        runtime.report_slots()
        if runtime.speculative is not None:
            runtime.speculative.release(rows.row_of(owner))
            if owner.finished():
                state.totals.stepped(rows.steps(owner))
                runtime.metrics.speculated(state.totals)
        if owner.finished():
            reuse.give_back(owner)  # to sessions, dumps and the response


@hook(
    BEFORE,
    "sglang.srt.managers.scheduler.Scheduler.get_next_batch_to_run",
    "before merging, admission and retraction, so that freed slots count in the same step",
)
def compress_due(scheduler: Scheduler, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None) -> None:
    """BEFORE Scheduler.get_next_batch_to_run, once per scheduling step.

    At this point the last forward may still be running. Its rows are in `running_batch`, or, if it was an extend, in
    `last_batch`, which is merged right after. With a pipeline it is another micro-batch's, and the last result of the
    rows here has been processed: each stage compresses its own layers of them, at the same point of the same sequence.
    """
    runtime = runtime_of(scheduler)
    if runtime is None:
        return
    runtime.step += 1
    batches = rows.decode_batches(running_batch, last_batch)
    pressure.watch(runtime, batches)
    prefilling = rows.prefilling(scheduler, last_batch)
    for batch in batches:
        if compress_in(runtime, batch, prefilling):
            running_batch.batch_is_full = False  # what was freed may admit a request in this very step
    runtime.compressor.recorder.keeps_free = False  # until a request is again kept from coming back
    runtime.report_slots()


def compress_in(
    runtime: SchedulerRPC, batch: ScheduleBatch, prefilling: tuple[Req | None, Req | None] = (None, None)
) -> bool:
    """Compress the rows of `batch` that are due, but for those of requests that are `prefilling`; whether any was."""
    done = False
    # Again where something was done: of a row rebuilt from its tokens more than one thought may have its gists.
    while due := _due(runtime, batch, prefilling):
        apply_compressions(runtime, batch, due)
        done = True
    return done


def _due(
    runtime: SchedulerRPC, batch: ScheduleBatch, prefilling: tuple[Req | None, Req | None]
) -> list[tuple[int, Req, Compression]]:
    """The compressions of `batch` that are due, by row. Of regions that lie in the tree, no more than one: its copy is
    compressed, and most of it free again, before the next is made."""
    due, copied = [], False
    for index, req, state in rows.rows_to_check(batch):
        if req in prefilling or (copied and state.shares_region):
            continue
        compression = _poll(runtime, req, state)
        if compression is not None and state.shares_region:
            copied = own_copy.make(runtime, req, state)
            if not copied:
                continue
        if compression is not None:
            due.append((index, req, compression))
    return due


def _poll(runtime: SchedulerRPC, req: Req, state: RequestState) -> Compression | None:
    generated, lag = rows.generated(req, state), rows.lag(runtime, req)
    compression = runtime.compressor.poll(state, rows.row_of(req), req.origin_input_ids, generated, req.output_ids, lag)
    if compression is None:
        refit(runtime.scheduler, req, state, generated)
    return compression
