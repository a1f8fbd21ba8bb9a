"""A request that ends with as many entries as a due date asks for is compressed before it leaves them to others.

Under overlap the scheduler has looked at it by then. Without, its next step would have been the first to.
"""

from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import BatchResultProcessor
from sglang_rpc.contract.targets import BEFORE, REUSE, hook
from sglang_rpc.hooks import own_copy, rows
from sglang_rpc.hooks.compaction import compress_rows
from sglang_rpc.hooks.runtime import runtime_of


@hook(
    BEFORE,
    "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
    "._prepare_kv_cache_release",
    "the last moment at which the row of a finished request may change its length",
    REUSE,
)
def compress_at_the_end(processor: BatchResultProcessor, req: Req) -> None:
    """BEFORE SchedulerBatchResultProcessor._prepare_kv_cache_release, once per finished request."""
    runtime, state = runtime_of(processor.tree_cache.req_to_token_pool), req.rpc
    if runtime is None or state is None or state.options.reuse != "continue":
        return
    if not state.active or state.start is None or state.recording.slot is None or not req.kv.holds_kv:
        return
    generated = rows.generated(req, state)
    newest = state.inherited + len(req.output_ids_through_stop)  # it must stay outside, or nobody could go on after it
    if not state.due(state.clock.events) <= generated < newest:
        return
    c = runtime.compressor.poll(state, rows.row_of(req), req.origin_input_ids, generated, req.output_ids)
    if c is not None and (not state.shares_region or own_copy.make(runtime, req, state)):
        compress_rows(runtime, [(req, c)])
