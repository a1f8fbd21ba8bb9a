"""Positions are logical. `orig_seq_lens` already is: SGLang advances it by one a step and carries it through filter
and merge, and compaction leaves it alone. So no table of evicted counts is needed, and none can be stale.

A server that speculates does not advance it: there, steps that draft and verify have a table (`speculative`)."""

import copy
from collections.abc import Callable

import torch

from sglang_rpc.contract.sglang.batches import ForwardBatch, ScheduleBatch
from sglang_rpc.contract.sglang.model import ModelRunner
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.targets import AFTER, AROUND, hook
from sglang_rpc.hooks.model import DraftRPC, draft_rpc, model_rpc
from sglang_rpc.hooks.recording import going_on
from sglang_rpc.hooks.resume import restore_ids
from sglang_rpc.hooks.reuse import in_force
from sglang_rpc.hooks.runtime import is_recorded
from sglang_rpc.hooks.speculative import lacking_of_draft
from sglang_rpc.hooks.step import SingleRows, carrying, logical_lengths
from sglang_rpc.memory.query_ring import DraftQueries, QueryRing


@hook(
    AROUND,
    "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
    "positions count the sequence, not the KV entries that are left of it",
)
def make_logical(
    original: Callable[..., ForwardBatch],
    cls: type[ForwardBatch],
    batch: ScheduleBatch,
    model_runner: ModelRunner,
    *args: object,
    **kwargs: object,
) -> ForwardBatch:
    """AROUND ForwardBatch.init_new, once per forward step: compressed rows get the position of the token, not of the
    slot."""
    model = model_rpc(model_runner)
    if model is None:
        draft = draft_rpc(model_runner)
        if draft is None:
            return original(cls, batch, model_runner, *args, **kwargs)
        forward_batch = original(carrying(cls), batch, model_runner, *args, **kwargs)
        _correct_draft(forward_batch, batch, model_runner, draft)
        return forward_batch
    forward_batch = original(carrying(cls), batch, model_runner, *args, **kwargs)
    mode, ring = forward_batch.forward_mode, model.ring
    if model.speculative is not None and mode.is_target_verify():
        if _any_compressed(batch.reqs):
            _move(forward_batch, model.speculative.lacking(forward_batch.req_pool_indices, ring.drafts))
    elif mode.is_decode():
        if _any_compressed(batch.reqs):
            _move(forward_batch, forward_batch.orig_seq_lens - forward_batch.seq_lens)
    elif mode.is_extend() and (ring.in_use or model.every_step or _any_compressed(batch.reqs)):
        _correct_extend(forward_batch, batch, ring)
    return forward_batch


def _correct_draft(
    forward_batch: ForwardBatch, batch: ScheduleBatch, model_runner: ModelRunner, draft: DraftRPC
) -> None:
    """A draft prefills what its model prefills, and records what its model records there."""
    compressed = _any_compressed(batch.reqs)
    if forward_batch.forward_mode.is_extend():
        if compressed or draft.queries.in_use:
            _correct_extend(forward_batch, batch, draft.queries)
    elif compressed:
        lacking = lacking_of_draft(model_runner, forward_batch, batch)
        if lacking is not None:
            _move(forward_batch, lacking)


def _correct_extend(forward_batch: ForwardBatch, batch: ScheduleBatch, ring: QueryRing | DraftQueries) -> None:
    """Rows of one token may be decode rows of a mixed step or restored requests, compressed and being recorded.

    A prompt's chunk of one token is neither. Other rows of one token after their prompt own no query slot. A row of
    any length moves by what it lacks: nothing, unless it is compressed or its prompt was taken over compressed.
    """
    device, lengths = forward_batch.positions.device, forward_batch.seq_lens
    lacking = [_lacking(req) for req in batch.reqs]
    if any(lacking):
        per_row = _to_device(lacking, lengths.dtype, device)
        # With the size given, the host need not wait for the sum.
        size = sum(batch.extend_lens)
        _move(forward_batch, per_row.repeat_interleave(forward_batch.extend_seq_lens, output_size=size))
        forward_batch.rpc_lengths = lengths + per_row
    tokens, rows, end = [], [], 0
    for index, length in enumerate(batch.extend_lens):
        end += length
        req = batch.reqs[index]
        prompt = len(req.origin_input_ids)
        if length == 1 and req.extend_end > (prompt if req.rpc is None else req.rpc.fixed(prompt)):
            rows.append(index)
            tokens.append(end - 1)
            restore_ids(req)
        elif going_on(req):
            newest = range(max(end - length, end - ring.window), end)  # older ones would share their entries
            rows += [index] * len(newest)
            tokens += newest
    if not rows:
        return
    # A step with such rows runs without a graph, with DP attention on every rank: so only where one is recorded.
    recorded = ring.in_use and any(is_recorded(batch.reqs[index]) for index in rows)
    token, row = _to_device(tokens, torch.int64, device), _to_device(rows, torch.int64, device)
    forward_batch.rpc = SingleRows(
        tokens=token,
        rows=row,
        where=ring.where(forward_batch.req_pool_indices[row], forward_batch.positions[token]) if recorded else None,
    )


def _move(forward_batch: ForwardBatch, lacking: torch.Tensor) -> None:
    """Add to the position of each token what its row lacks. New tensors: the old ones may be shared.

    SGLang counts physical lengths. The three axes of mrope count alike after the prompt, whatever an image in it took;
    and in a prompt that was taken over there is only text.
    """
    forward_batch.positions = forward_batch.positions + lacking.to(forward_batch.positions.dtype)
    if forward_batch.mrope_positions is not None:
        forward_batch.mrope_positions = forward_batch.mrope_positions + lacking.to(forward_batch.mrope_positions.dtype)


def _lacking(req: Req) -> int:
    """Entries that the row of `req` lacks: evicted of it, or of the prompt that it took over."""
    state = req.rpc
    if state is None:
        return 0
    return state.evicted if state.taken is None or in_force(req) is None else state.evicted + state.offset


@hook(
    AFTER,
    "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_extend",
    "a restored request is extended from a row that is shorter than its text, and so is a prompt taken over compressed",
)
def count_logically(_result: object, batch: ScheduleBatch) -> None:
    """AFTER ScheduleBatch.prepare_for_extend: `orig_seq_lens`, which it sets to the row's length, is logical.

    Runs once per extend step, before its forward batch is made. The new tensor is this batch's alone.
    """
    # SGLang takes no row to be shorter than its prompt; one that goes on with a region may be.
    lacking = [_lacking(req) - _taken_longer(req) for req in batch.reqs]
    if any(lacking):
        lengths = batch.orig_seq_lens
        batch.orig_seq_lens = lengths + _to_device(lacking, lengths.dtype, lengths.device)


def _taken_longer(req: Req) -> int:
    if req.rpc is None or req.rpc.continued is None or not req.rpc.continued.copied:
        return 0
    return max(0, len(req.origin_input_ids) - req.extend_end)


def _to_device(values: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    pinned = device.type == "cuda"  # or the copy would make the host wait
    return torch.tensor(values, dtype=dtype, pin_memory=pinned).to(device, non_blocking=True)


def _any_compressed(reqs: list[Req]) -> bool:
    # Asked of every row at every step: no call per row.
    return any(req.rpc is not None and (req.rpc.evicted or req.rpc.taken is not None) for req in reqs)


@hook(
    AROUND,
    "sglang.srt.model_executor.model_runner.ModelRunner.sample",
    "seeded sampling of a mixed batch takes its positions from seq_lens, which are physical",
)
def sample_at_logical(
    original: Callable[..., torch.Tensor], model_runner: ModelRunner, logits_output: object, forward_batch: ForwardBatch
) -> torch.Tensor:
    """AROUND ModelRunner.sample: for an extend it passes `seq_lens - 1` as the sampler's positions."""
    lengths = logical_lengths(forward_batch)
    if lengths is not None:
        # Sampling reads the batch and writes to what it holds, never to the batch itself.
        forward_batch = copy.copy(forward_batch)
        forward_batch.seq_lens = lengths
    return original(model_runner, logits_output, forward_batch)
