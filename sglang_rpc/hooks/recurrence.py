"""What happens to recurrent states beside compressed KV: nothing. They hold the whole text, and no compression moves
them. But SGLang keys a state in the tree by a number of tokens, which it takes from the KV length, and a compressed
row is shorter than its text. So of a compressed request no state is tracked, and none enters the tree.

A step that verifies drafts computes the state after each of them. Those of rejected drafts are taken back: once it is
known what the step accepts, and that is cut at a due date (speculative.py), SGLang makes the state after the last
accepted token the request's."""

from collections.abc import Callable

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.memory import Tree
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.targets import AROUND, BEFORE, SPECULATIVE, hook
from sglang_rpc.hooks.runtime import state_of

_PROCESSOR = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"


@hook(
    BEFORE,
    f"{_PROCESSOR}.process_batch_result_decode",
    "where a decode step has copied a state, SGLang takes the KV length for a number of tokens, and asserts it",
)
def track_no_state(_processor: object, batch: ScheduleBatch, _result: object) -> None:
    """BEFORE SchedulerBatchResultProcessor.process_batch_result_decode, once per decode step's result.

    Of a compressed request nothing is noted of a copy, also if the step was launched before the compression. The copy
    itself is in a slot of the request's own, which nobody reads. The masks are lists on the host, read by this result's
    processing alone.
    """
    if batch.mamba_track_mask_cpu is None:  # of a model without recurrent layers, or nothing is copied
        return
    for i, req in enumerate(batch.reqs):
        state = state_of(req)
        if state is not None and state.evicted:
            batch.mamba_track_mask_cpu[i] = False
            if batch.mamba_track_mask_next_cpu is not None:
                batch.mamba_track_mask_next_cpu[i] = False


@hook(
    AROUND,
    f"{_PROCESSOR}._mamba_prefix_cache_update",
    "where a verify has copied a state, SGLang notes it under the text's length, and copied it at the KV length's",
    SPECULATIVE,
)
def track_no_state_of_drafts(
    original: Callable[..., None], processor: object, req: Req, *args: object, **kwargs: object
) -> None:
    """AROUND SchedulerBatchResultProcessor._mamba_prefix_cache_update, once per row of a verify's result: of a
    compressed request nothing is noted. What was copied is in the one of its own two slots that nobody reads, and
    the next copy goes there too."""
    state = state_of(req)
    if state is None or not state.evicted:
        original(processor, req, *args, **kwargs)


@hook(
    BEFORE,
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.claim_kv_row",
    "a finished request's last state would enter the tree under the prompt, to which its KV is cut",
)
def keep_last_state_out(tree: Tree, req: Req) -> None:
    """BEFORE UnifiedRadixCache.claim_kv_row, at the beginning of each release of a row: of a compressed request nothing
    is inserted, and its states are freed. The tree has its prompt since the prefill."""
    state = state_of(req)
    if state is not None and state.evicted and tree.supports_mamba():
        req.skip_radix_cache_insert = True
