"""Physical compaction of all requests and layers in one launch, in place, without staging.

Kept indices ascend, so an entry only ever moves to the front: `source >= target`. One program walks one slice of one
request's entries from the front, in blocks. A block's sources lie at or after it, so once they are loaded, storing
over the block destroys nothing that a later block needs. Slices (a KV head of K or of V of one layer) never overlap,
and neither do requests. The reference is `compaction.move_kept`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sglang_rpc.types import CompressionBatch, KVLayer

#: In place of a layer's index: it keeps the newest candidates.
_NEWEST = -1
#: Words that a program holds at once, twice: the block to store and the one on its way.
_BLOCK_WORDS = 4096


@dataclass(frozen=True)
class _Group:
    """Buffers of one geometry, counted in words of `example`'s dtype."""

    example: torch.Tensor
    pointers: torch.Tensor  #: int64 [buffers]
    layers: torch.Tensor  #: int32 [buffers], whose kept indices apply; -1: none, the newest are kept
    words: int  #: of a slice
    slot_words: int  #: between two slots
    head_words: int  #: between two heads
    aligned: bool  #: a slice always begins on 16 bytes, so that it can be read and written 16 at a time


class SliceTable:
    """Where the slices of every layer's buffers are: raw storage, whatever dtype it stands for.

    Raises ValueError if the buffers do not all have the same number of KV heads, or a slice is not contiguous.
    """

    def __init__(self, layers: Sequence[KVLayer]):
        self.kv_heads = layers[0].keys.shape[1]
        alike: dict[tuple[int, int, int], list[tuple[int, torch.Tensor]]] = {}
        scored = itertools.count()
        for layer in layers:
            index = _NEWEST if layer.window else next(scored)
            for buffer in layer.buffers:
                if buffer.shape[1] != self.kv_heads or buffer.stride(2) != 1:
                    raise ValueError("all layers must hold the same KV heads, each head's entry contiguous")
                size = buffer.element_size()
                geometry = (buffer.shape[2] * size, buffer.stride(0) * size, buffer.stride(1) * size)
                alike.setdefault(geometry, []).append((index, buffer))
        #: One, or two where values are not as wide as keys.
        self.groups = [_group(geometry, buffers) for geometry, buffers in alike.items()]


def _group(geometry: tuple[int, int, int], buffers: list[tuple[int, torch.Tensor]]) -> _Group:
    addresses = [buffer.data_ptr() for _, buffer in buffers]
    word = next(w for w in (4, 2, 1) if all(number % w == 0 for number in (*geometry, *addresses)))
    device = buffers[0][1].device
    return _Group(
        torch.empty(0, dtype={4: torch.int32, 2: torch.int16, 1: torch.int8}[word], device=device),
        torch.tensor(addresses, dtype=torch.int64, device=device),
        torch.tensor([index for index, _ in buffers], dtype=torch.int32, device=device),
        words=geometry[0] // word,
        slot_words=geometry[1] // word,
        head_words=geometry[2] // word,
        aligned=all(number % 16 == 0 for number in (*geometry[1:], *addresses)),
    )


def move_kept(table: SliceTable, req_to_token: torch.Tensor, batch: CompressionBatch, kept: torch.Tensor) -> None:
    """Compact the regions of `batch` in all layers, in place, on the current stream.

    Args:
        req_to_token: int32 [rows, max_context], the pool slot of each row position.
        kept: int32 [layers, B, 1 or kv_heads, most_kept], candidates that stay, ascending, in each layer with full
            attention; the others keep the newest.
    """
    assert kept.dtype == torch.int32 and kept.stride(3) == 1 and kept.shape[2] in (1, table.kv_heads)
    assert req_to_token.dtype == torch.int32 and req_to_token.stride(1) == 1
    assert kept.device == req_to_token.device == batch.rows.device
    layer_stride, request_stride, head_stride, _ = kept.stride()
    for group in table.groups:
        width = triton.next_power_of_2(group.words)
        _move_kernel[(group.pointers.numel(), batch.size, table.kv_heads)](
            example=group.example,
            pointers=group.pointers,
            layers=group.layers,
            req_to_token=req_to_token,
            kept=kept,
            rows=batch.rows,
            begins=batch.begins,
            counts=batch.candidates,
            keeps=batch.keeps,
            windows=batch.windows,
            slot_words=group.slot_words,
            head_words=group.head_words,
            row_stride=req_to_token.stride(0),
            kept_layer_stride=layer_stride,
            kept_request_stride=request_stride,
            kept_head_stride=head_stride,
            APART=kept.shape[2] > 1,
            ALIGNED=group.aligned,
            BLOCK=max(8, min(64, _BLOCK_WORDS // width)),
            WORDS=group.words,
            WIDTH=width,
            num_warps=4,
        )


@triton.jit
def _load_block(
    buffer, slot_words, slots_of_row, kept, first, keep, candidates, total,
    BLOCK: tl.constexpr, WORDS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The entries that go to `first` and the BLOCK - 1 after it, where they go, and which do: not those that stay."""
    target = first + tl.arange(0, BLOCK)
    is_kept = target < keep
    source = tl.where(is_kept, tl.load(kept + target, mask=is_kept, other=0), candidates + target - keep)
    moves = (target < total) & (source != target)
    from_slot = tl.load(slots_of_row + source, mask=moves, other=0).to(tl.int64)
    to_slot = tl.load(slots_of_row + target, mask=moves, other=0).to(tl.int64)
    word = tl.arange(0, WIDTH)
    here = buffer + from_slot[:, None] * slot_words + word[None, :]
    return tl.load(here, mask=moves[:, None] & (word < WORDS)[None, :]), to_slot, moves


@triton.jit(do_not_specialize=["kept_layer_stride", "kept_request_stride", "kept_head_stride"])
def _move_kernel(
    example, pointers, layers, req_to_token, kept, rows, begins, counts, keeps, windows,
    slot_words, head_words, row_stride, kept_layer_stride, kept_request_stride, kept_head_stride,
    APART: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, WORDS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One KV head of one request in one buffer."""
    request, head = tl.program_id(1), tl.program_id(2)
    buffer = tl.load(pointers + tl.program_id(0)).to(tl.pointer_type(example.dtype.element_ty)) + head * head_words
    if ALIGNED:
        buffer = tl.multiple_of(buffer, 16)
    slots_of_row = req_to_token + tl.load(rows + request).to(tl.int64) * row_stride + tl.load(begins + request)
    candidates, keep = tl.load(counts + request), tl.load(keeps + request)
    total = keep + tl.load(windows + request)
    layer = tl.load(layers + tl.program_id(0))
    # The newest candidates stand right before the window: none is looked up, and they move with it.
    looked_up = tl.where(layer < 0, 0, keep)
    candidates, keep = candidates - (keep - looked_up), looked_up
    kept += tl.maximum(layer, 0).to(tl.int64) * kept_layer_stride + request * kept_request_stride
    if APART:
        kept += head * kept_head_stride

    word = tl.arange(0, WIDTH)
    entries, slots, moves = _load_block(
        buffer, slot_words, slots_of_row, kept, 0, keep, candidates, total, BLOCK, WORDS, WIDTH
    )  # fmt: skip
    for first in range(0, total, BLOCK):
        # The next block is on its way while this one is stored; its sources lie after what is stored now.
        next_entries, next_slots, next_moves = _load_block(
            buffer, slot_words, slots_of_row, kept, first + BLOCK, keep, candidates, total, BLOCK, WORDS, WIDTH
        )  # fmt: skip
        # Every thread has loaded its part of this block before any thread stores over it.
        tl.debug_barrier()
        there = buffer + slots[:, None] * slot_words + word[None, :]
        tl.store(there, entries, mask=moves[:, None] & (word < WORDS)[None, :])
        entries, slots, moves = next_entries, next_slots, next_moves
