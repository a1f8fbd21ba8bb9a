"""On the decode server of prefill/decode disaggregation, where steps are planned.

Its scheduler has a method of its own for that: no prefill, but requests whose KV has arrived, which join those that
decode without a forward pass. A row that has joined is like any other server's: transfers write the prompt, before the
first step, and a compression moves only what stands after it. Slots that a compression frees may be the next request's
at once: their numbers are sent to its prefill server through the host, after this stream has caught up.
"""

from collections.abc import Callable

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.disaggregation import NextBatchPlan
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import AFTER, AROUND, hook
from sglang_rpc.hooks.result_in_flight import ResultInFlight
from sglang_rpc.hooks.runtime import runtime_of
from sglang_rpc.hooks.scheduling import compress_due


@hook(
    AROUND,
    "sglang.srt.disaggregation.decode.SchedulerDisaggregationDecodeMixin.get_next_disagg_decode_batch_to_run",
    "a decode server plans its steps here, and takes a step that was put off for a batch",
)
def plan_step(
    original: Callable[..., NextBatchPlan], scheduler: Scheduler, running_batch: ScheduleBatch
) -> NextBatchPlan:
    """AROUND get_next_disagg_decode_batch_to_run, once per scheduling step: compress what is due, then plan.

    Where a retraction has to wait for a result (`result_in_flight`), nothing is launched: SGLang would ask the None
    that says so whether it is empty.
    """
    if runtime_of(scheduler) is None:
        return original(scheduler, running_batch)
    compress_due(scheduler, running_batch, None)
    try:
        return original(scheduler, running_batch)
    except ResultInFlight as put_off:
        from sglang.srt.managers.schedule_batch import NextBatchPlan as Plan

        idle = scheduler.dp_attn_adapter.maybe_prepare_mlp_sync_batch(None)
        # Not the batch that this was called with: requests whose KV arrived may have become the running batch.
        plan: NextBatchPlan = Plan(batch_to_run=idle, running_batch=put_off.batch)
        return plan


@hook(
    AFTER,
    "sglang.srt.disaggregation.decode_schedule_batch_mixin.ScheduleBatchDisaggregationDecodeMixin.prepare_for_prebuilt",
    "a request that comes back compressed joins with a row that is shorter than its text",
)
def count_entries(_result: object, batch: ScheduleBatch) -> None:
    """AFTER prepare_for_prebuilt, once per batch of requests that join: `seq_lens`, which it sets to the lengths of
    texts, are those of rows. `orig_seq_lens` stays logical."""
    import torch

    evicted = [0 if req.rpc is None else req.rpc.evicted for req in batch.reqs]
    if not any(evicted):
        return
    missing = torch.tensor(evicted, dtype=batch.seq_lens_cpu.dtype)
    batch.seq_lens_cpu = batch.seq_lens_cpu - missing
    batch.seq_lens = batch.seq_lens - missing.to(batch.seq_lens.device)
    batch.seq_lens_sum = None  # SGLang sums them up anew
