"""Applies compressions to a batch of SGLang's: moves, frees, and corrects every length."""

import logging
from collections.abc import Sequence

import torch

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.hooks import reuse, rows
from sglang_rpc.hooks.runtime import SchedulerRPC
from sglang_rpc.hooks.window_pool import move_window_slots
from sglang_rpc.runtime.pages import ceil_align
from sglang_rpc.runtime.pressure import slots_freed
from sglang_rpc.types import Compression

logger = logging.getLogger(__name__)


def apply_compressions(runtime: SchedulerRPC, batch: ScheduleBatch, due: list[tuple[int, Req, Compression]]) -> None:
    """Compress rows of `batch`, given by index, on the current stream, after the forward pass in flight.

    Sets the lengths of each request, and those of the batch, or what the next launch is told of them; gives the slots
    freed back to the pool; commits each compression.
    """
    relayed = runtime.speculative is not None and runtime.speculative.lag > 0
    for index, req, c in due:
        # The two ways to corrupt memory. Neither can happen as long as the tree's clamps hold.
        front = len(req.origin_input_ids) if req.rpc is None else req.rpc.front(len(req.origin_input_ids))
        assert req.kv.cache_protected_len <= front, f"{req.rid}: the tree owns generated KV"
        assert req.kv.kv_committed_len == c.end, f"{req.rid}: committed {req.kv.kv_committed_len}, row {c.end}"
        assert relayed or int(batch.seq_lens_cpu[index]) == c.end, (
            f"{req.rid}: {batch.seq_lens_cpu[index]}, row {c.end}"
        )
        assert runtime.speculative is not None or req.kv.kv_allocated_len == c.end, (
            f"{req.rid}: allocated {req.kv.kv_allocated_len}, row {c.end}"
        )
    compress_rows(runtime, [(req, c) for _, req, c in due])
    if relayed:
        _relay(runtime, [c for _, _, c in due])
        return
    shorter = torch.zeros_like(batch.seq_lens_cpu)
    for index, _, c in due:
        shorter[index] = c.evicted
    # New tensors: forwards in flight and queued results hold the old ones.
    batch.seq_lens_cpu = batch.seq_lens_cpu - shorter
    batch.seq_lens = batch.seq_lens - _to_device(shorter, batch.seq_lens)
    batch.seq_lens_sum = None  # SGLang sums them up anew, as after its own changes


def _relay(runtime: SchedulerRPC, compressions: list[Compression]) -> None:
    """Publish the lengths of compressed rows where the next launch takes a batch's lengths from, for its own are those
    of its last launch. No step of these rows is in flight, so what the last one published is `Compression.end`.

    To publish, and not to write, has the copy to the host wait for them: it waits for the newest publication alone.
    """
    future_map = runtime.scheduler.future_map
    lengths = future_map.new_seq_lens_buf
    rows_, ends = torch.tensor([(c.row, c.new_end) for c in compressions], dtype=lengths.dtype).unbind(1)
    future_map.publish(_to_device(rows_, lengths), _to_device(ends, lengths))


def _to_device(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if like.is_cuda:
        values = values.contiguous().pin_memory()  # or the copy would make the host wait
    return values.to(like.device, like.dtype, non_blocking=True)


def compress_rows(runtime: SchedulerRPC, due: Sequence[tuple[Req, Compression]]) -> None:
    """Compress the rows of requests, on the current stream, after the forward pass in flight; sets their lengths, gives
    the slots freed back to the pool, and commits each compression. Lengths of batches are the caller's."""
    runtime.fence()
    runtime.compressor.compress([c for _, c in due])
    for req, c in due:
        state = req.rpc
        assert state is not None
        if runtime.tracer is not None and state.continued is None:
            state.hooks.trace = runtime.tracer.compressed(state, c, req.rid, reuse.text_of(req), req.output_ids)
        if runtime.speculative is not None:
            state.totals.stepped(rows.steps(req))
            if runtime.speculative.was_cut(c.row, c.end):
                runtime.count_cut(state)
        freed, prompt = _free_tail(runtime, req, c), state.front(len(req.origin_input_ids))
        runtime.compressor.commit(state, c, freed)
        state.hooks.compacted_in = runtime.step
        runtime.metrics.compressed(c, freed)
        logger.debug(
            "RPC %s: compression %d at %d generated tokens, %d -> %d entries, %d slots freed%s",
            req.rid, c.event, c.generated, c.end - prompt, c.new_end - prompt, freed,
            ", late" if c.late else ", early" if c.early else "",
        )  # fmt: skip


def _free_tail(runtime: SchedulerRPC, req: Req, c: Compression) -> int:
    """Give back the whole pages after the kept entries; returns the slots freed.

    They may be handed out at once: their next writer is a forward that waits for this stream. A row that speculates has
    slots for its next steps after its entries: as many as it had, in whole pages, which nobody has filled.
    """
    kv, page = req.kv, runtime.page_size
    ahead = rows.ahead(runtime, req)
    first_free = ceil_align(c.new_end + ahead, page)
    if runtime.own_windows:
        move_window_slots(runtime.scheduler, req, c)
    elif first_free < c.end + ahead:
        runtime.scheduler.tree_cache.free_kv_row(kv, [(first_free, c.end + ahead)])
    kv.kv_committed_len = c.new_end
    kv.kv_allocated_len = first_free if ahead else c.new_end
    return slots_freed(c, page, ahead)
