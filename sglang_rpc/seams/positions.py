"""Positions are logical. `orig_seq_lens` already is: SGLang advances it by one a step and carries it through filter
and merge, and compaction leaves it alone. So no table of evicted counts is needed, and none can be stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def make_logical(forward_batch: Any, cls: Any, batch: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ForwardBatch.init_new: rows that lost entries get the position of the token, not of the slot."""
    mode = forward_batch.forward_mode
    decoding = batch.reqs if mode.is_decode() else batch.decoding_reqs if mode.is_mixed() else None
    if not decoding or not any(req.rpc is not None and req.rpc.evicted for req in decoding):
        return
    rows = len(decoding)
    # A new tensor: the old one may be shared. Decode rows of a mixed batch are its last, of one token each.
    logical = (forward_batch.orig_seq_lens[-rows:] - 1).to(forward_batch.positions.dtype)
    forward_batch.positions = torch.cat([forward_batch.positions[:-rows], logical])
    if mode.is_mixed():
        forward_batch.rpc_logical_lens = torch.cat(
            [forward_batch.seq_lens[:-rows], forward_batch.orig_seq_lens[-rows:].to(forward_batch.seq_lens.dtype)]
        )


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
