"""Compression of a server that speculates and schedules ahead: the host plans a step while the last one runs, and does
not know how many tokens that one accepts.

A compression is due at a number of entries, and no step runs past it (speculative.py). So a row may stand on its date
once the last step is done, and must not be launched there. Before a launch, then, where a row may have come that far:

    plan step i   ->   process the result of step i - 1   ->   compress what stands on its date   ->   launch step i

which is SGLang's own way where a step needs what the last one chose. All other steps overlap as ever. A batch that is
planned may still be compressed: its lengths, slots and masks are taken at the launch, and the slots that the plan has
taken for it are after its entries, and stay so.
"""

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import AFTER, BEFORE, SPECULATIVE, hook
from sglang_rpc.hooks import rows
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of
from sglang_rpc.hooks.scheduling import compress_in
from sglang_rpc.types import NEVER


@hook(
    AFTER,
    "sglang.srt.managers.scheduler.Scheduler.is_disable_overlap_for_batch",
    "a row that may have come to its due date must not be launched before that is known",
    SPECULATIVE,
)
def wait_for_lengths(
    disabled: bool, scheduler: Scheduler, batch: ScheduleBatch | None, *_args: object, **_kwargs: object
) -> bool | None:
    """AFTER Scheduler.is_disable_overlap_for_batch, once per step, between its plan and its launch: True has SGLang
    process the result in flight first."""
    runtime = runtime_of(scheduler)
    if runtime is None or disabled or batch is None or not batch.forward_mode.is_decode():
        return None
    return _may_be_due(runtime, batch) or None


@hook(
    BEFORE,
    "sglang.srt.managers.scheduler.Scheduler.run_batch",
    "after the last result is processed: rows that stand on their due date must not be launched there",
    SPECULATIVE,
)
def compress_before_launch(scheduler: Scheduler, batch: ScheduleBatch, *_args: object, **_kwargs: object) -> None:
    """BEFORE Scheduler.run_batch, once per step. Without overlap, and where a result is in flight, nothing is due."""
    runtime = runtime_of(scheduler)
    if runtime is None or runtime.speculative is None or not runtime.speculative.lag or scheduler.result_queue:
        return
    if batch.forward_mode.is_decode() and compress_in(runtime, batch):
        scheduler.running_batch.batch_is_full = False  # what was freed may admit a request in the next step
        runtime.report_slots()


def _may_be_due(runtime: SchedulerRPC, batch: ScheduleBatch) -> bool:
    """Whether a step in flight may have brought a row of `batch` to its stop."""
    table = runtime.speculative
    if table is None or not table.lag or not table.stops:
        return False
    near = (
        req for req in batch.reqs if req.kv.kv_committed_len + table.lag >= table.stops.get(rows.row_of(req), NEVER)
    )
    return any(rows.lag(runtime, req) for req in near)
