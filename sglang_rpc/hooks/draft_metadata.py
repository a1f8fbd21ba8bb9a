"""How long the rows of a draft step are, for attention backends that take a position for that.

Their kernels sum up the positions of a step's rows, and take the sums for where each row's slots begin in a list. Those
of compressed rows are logical, and count more entries than there are.
"""

from collections.abc import Callable

import torch

from sglang_rpc.contract.sglang.batches import DraftSteps, ForwardBatch
from sglang_rpc.contract.targets import AROUND, SPECULATIVE, hook
from sglang_rpc.hooks.runtime import runtime_of

_ATTENTION = "sglang.srt.layers.attention"


@hook(
    AROUND,
    f"{_ATTENTION}.triton_backend.TritonMultiStepDraftBackend.common_template",
    "positions of draft steps are taken for row lengths",
    SPECULATIVE,
)
@hook(
    AROUND,
    f"{_ATTENTION}.flashinfer_backend.FlashInferMultiStepDraftBackend.common_template",
    "positions of draft steps are taken for row lengths",
    SPECULATIVE,
)
@hook(
    AROUND,
    f"{_ATTENTION}.flashinfer_mla_backend.FlashInferMLAMultiStepDraftBackend.common_template",
    "positions of draft steps are taken for row lengths",
    SPECULATIVE,
)
def count_entries(
    original: Callable[..., None], steps: DraftSteps, forward_batch: ForwardBatch, *args: object, **kwargs: object
) -> None:
    """AROUND common_template of a draft's steps, once per step that drafts, before they run, and outside of the graph
    that they are replayed from. For the call, positions count entries; the draft's own are not changed.

    Of a graph's padding, row 0, nothing is ever evicted. While graphs are captured there is no request yet.
    """
    runtime, logical = runtime_of(steps.req_to_token_pool), forward_batch.positions
    if runtime is None or runtime.speculative is None:
        original(steps, forward_batch, *args, **kwargs)
        return
    rows = forward_batch.req_pool_indices
    lacking: torch.Tensor = runtime.speculative.lacking(rows, logical.numel() // max(1, rows.numel()))
    forward_batch.positions = logical - lacking.to(logical.dtype)
    try:
        original(steps, forward_batch, *args, **kwargs)
    finally:
        forward_batch.positions = logical
