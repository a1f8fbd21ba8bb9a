"""Positions are logical. `orig_seq_lens` already is: SGLang advances it by one a step and carries it through filter
and merge, and compaction leaves it alone. So no table of evicted counts is needed, and none can be stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def make_logical(forward_batch: Any, cls: Any, batch: Any, model_runner: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ForwardBatch.init_new: rows that lost entries get the position of the token, not of the slot."""
    ring = getattr(model_runner, "rpc_ring", None)
    if ring is None:
        return
    ring.mixed_step = None
    mode = forward_batch.forward_mode
    if mode.is_decode():
        if _any_compressed(batch.reqs):
            forward_batch.positions = _logical_positions(forward_batch, 0)
    elif mode.is_mixed() and batch.decoding_reqs:
        # The decode rows are a mixed batch's last, of one token each.
        first = -len(batch.decoding_reqs)
        if _any_compressed(batch.decoding_reqs):
            logical = _logical_positions(forward_batch, first)
            forward_batch.positions = torch.cat([forward_batch.positions[:first], logical])
            forward_batch.rpc_logical_lens = torch.cat(
                [forward_batch.seq_lens[:first], (logical + 1).to(forward_batch.seq_lens.dtype)]
            )
        if ring.in_use:
            # Counted from the front: the queries may be padded behind.
            tokens = forward_batch.positions.numel()
            where = ring.where(forward_batch.req_pool_indices[first:], forward_batch.positions[first:])
            ring.mixed_step = slice(tokens + first, tokens), where


def _any_compressed(reqs: list[Any]) -> bool:
    return any(req.rpc is not None and req.rpc.evicted for req in reqs)


def _logical_positions(forward_batch: Any, first_row: int) -> torch.Tensor:
    """A new tensor (the old one may be shared): the position of each row's newest token, from `first_row` on."""
    return (forward_batch.orig_seq_lens[first_row:] - 1).to(forward_batch.positions.dtype)


def sample_at_logical(original: Callable, model_runner: Any, logits_output: Any, forward_batch: Any) -> Any:
    """AROUND ModelRunner.sample: for a mixed batch it passes `seq_lens - 1` as the sampler's positions."""
    logical = getattr(forward_batch, "rpc_logical_lens", None)
    if logical is None:
        return original(model_runner, logits_output, forward_batch)
    physical = forward_batch.seq_lens
    forward_batch.seq_lens = logical
    try:
        return original(model_runner, logits_output, forward_batch)
    finally:
        forward_batch.seq_lens = physical
