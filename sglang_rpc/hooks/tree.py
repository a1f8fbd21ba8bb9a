"""What the prefix tree may hold. Two ways would poison it, and both end here:

* a compressed request's KV inserted under its token ids: the slots no longer hold what the ids mean;
* a retracted request's generated KV, inserted by its re-prefill or matched there: tree-owned, shared, and then
  compacted in place.
"""

from collections.abc import Callable

from sglang_rpc.contract.sglang.memory import Tree
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.targets import AFTER, AROUND, hook
from sglang_rpc.hooks.publish import publish, remember
from sglang_rpc.hooks.runtime import state_of


@hook(
    AROUND,
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint",
    "KV of a compressed request must not enter the tree under its token ids, nor KV that is going to be compacted",
)
def insert_prompt_only(original: Callable[..., None], tree: Tree, req: Req, *, up_to: int, **kwargs: object) -> None:
    """AROUND UnifiedRadixCache.checkpoint: clamp to the prompt what is compressed, or may be later.

    With reuse, what is compressed enters under ids of its own.
    A recurrent state cannot be clamped: it is of all tokens up to `up_to`. So nothing is inserted beside such states.
    """
    state = state_of(req)
    ends = state is not None and req.finished()
    if state is not None and state.compacted and ends and publish(original, tree, req, state, up_to, **kwargs):
        return
    if state is not None and (state.compacted or (state.active and not req.finished())):
        prompt = state.fixed(len(req.origin_input_ids))
        if up_to > prompt and tree.supports_mamba():
            return  # as of a request that SGLang keeps out of the tree
        up_to = min(up_to, prompt)
    original(tree, req, up_to=up_to, **kwargs)
    if state is not None and ends:
        remember(tree, req, state)


@hook(
    AFTER,
    "sglang.srt.managers.schedule_batch.Req._compute_max_prefix_len",
    "generated tokens found in the tree are shared, and compaction writes in place",
)
def match_prompt_only(longest: int, req: Req, *_args: object, **_kwargs: object) -> int:
    """AFTER Req._compute_max_prefix_len: a request resumed after a retraction takes only its prompt from the tree, if
    what follows may be compressed, or comes from its backup."""
    state = state_of(req)
    if state is not None and (state.active or state.hooks.saved is not None) and len(req.output_ids) > 0:
        return min(longest, len(req.origin_input_ids))
    return longest


@hook(
    AFTER,
    "sglang.srt.managers.schedule_batch.Req.reset_for_retract",
    "the row is rebuilt from tokens, uncompressed",
)
def forget_row(_result: object, req: Req) -> None:
    """AFTER Req.reset_for_retract, at the end of each retraction: the row has been freed, its query slot with it."""
    state = state_of(req)
    # A row that a decode server has backed up comes back as it is, however long it is then.
    if state is not None and state.hooks.kept is None:
        state.reset()
