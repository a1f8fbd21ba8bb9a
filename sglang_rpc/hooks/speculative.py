"""Speculative decoding beside compression: no step crosses a due date, and a draft's positions are logical too.

A step drafts n - 1 tokens, verifies them and the newest one in n rows, and accepts those that the model itself chooses.
`seq_lens` are a row's entries before these n. What is accepted decides the next length, on the device: so that is where
it is cut (memory/speculative_rows.py). All that SGLang derives of a step, it derives of what is left. Then a row stands
on its date at a step's beginning, where it is compressed, and what is compressed when is the same with drafts, of
whatever quality, and without.
"""

import copy
from collections.abc import Callable

import torch

from sglang_rpc.contract.sglang.batches import ForwardBatch, ScheduleBatch
from sglang_rpc.contract.sglang.model import ModelRunner
from sglang_rpc.contract.targets import AROUND, SPECULATIVE, hook
from sglang_rpc.hooks.runtime import runtime_of

#: What a verify accepts: the tokens it chose, how many of each row, and where they stand in the step.
Accepted = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@hook(
    AROUND,
    "sglang.srt.speculative.eagle_utils.eagle_sample",
    "a step that ran past a due date would leave tokens that have seen what is evicted there",
    SPECULATIVE,
)
def cut_at_due_date(
    original: Callable[..., Accepted], verify_input: object, batch: ScheduleBatch, *args: object, **kwargs: object
) -> Accepted:
    """AROUND eagle_utils.eagle_sample, once per step that verifies, of whatever drafts, after its forward and
    on its stream. Of drafts that branch it has the queries of the accepted path recorded, too.

    Draws of seeded requests come from their seed and length: inside, SGLang finds the logical one.
    """
    runtime = runtime_of(batch.req_to_token_pool)
    if runtime is None or runtime.speculative is None or batch.forward_mode.is_idle():
        return original(verify_input, batch, *args, **kwargs)
    table, rows, lengths = runtime.speculative, batch.req_pool_indices, batch.seq_lens
    if batch.sampling_info.sampling_seed is not None:
        batch = copy.copy(batch)
        batch.seq_lens = lengths + table.evicted[rows].to(lengths.dtype)
    predict, accept_lens, accept_index = original(verify_input, batch, *args, **kwargs)
    accept_lens, accept_index = table.cut(rows, lengths, accept_lens, accept_index)
    if runtime.ring.trees is not None and runtime.ring.in_use:
        runtime.ring.trees.accept(rows, lengths + table.evicted[rows], accept_lens, accept_index)
    return predict, accept_lens, accept_index


def lacking_of_draft(
    model_runner: ModelRunner, forward_batch: ForwardBatch, batch: ScheduleBatch
) -> torch.Tensor | None:
    """What the position of each token of a draft's step lacks, but where it prefills: int64 [tokens]; None before the
    scheduler is whole. All rows have equally many tokens."""
    runtime = runtime_of(model_runner.req_to_token_pool)
    if runtime is None or runtime.speculative is None:
        return None
    return runtime.speculative.lacking(
        forward_batch.req_pool_indices, forward_batch.positions.numel() // len(batch.reqs)
    )
