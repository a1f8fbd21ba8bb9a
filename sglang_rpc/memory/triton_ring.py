"""The write of a step's queries into the query ring, one launch per layer: what a CUDA graph of a decode step replays.

Rows that own no query slot, nearly all of them, end after reading one number. `QueryRing.store` on a CPU is the
reference.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 2048


def store(ring: torch.Tensor, slots: torch.Tensor, entries: torch.Tensor, queries: torch.Tensor) -> None:
    """Write `queries` [n, heads, head_dim] to `ring[slots, entries]`; nothing to slot 0, the dummy slot.

    Args:
        queries: dims contiguous.
        ring: one layer's [slots, window, heads, head_dim], or a range of its head dim; dims contiguous.
        slots, entries: int64 [n].
    """
    heads, dim = ring.shape[2:]
    assert queries.shape[1:] == (heads, dim) and queries.stride(2) == 1 and ring.stride(3) == 1
    assert slots.dtype == entries.dtype == torch.int64 and slots.is_contiguous() and entries.is_contiguous()
    grid = (queries.shape[0], triton.cdiv(heads * dim, _BLOCK))
    _store_kernel[grid](
        queries=queries,
        ring=ring,
        slots=slots,
        entries=entries,
        query_stride=queries.stride(0),
        query_head_stride=queries.stride(1),
        slot_stride=ring.stride(0),
        entry_stride=ring.stride(1),
        head_stride=ring.stride(2),
        WIDTH=heads * dim,
        DIM=dim,
        BLOCK=min(_BLOCK, triton.next_power_of_2(heads * dim)),
    )


@triton.jit
def _store_kernel(
    queries, ring, slots, entries, query_stride, query_head_stride, slot_stride, entry_stride, head_stride,
    WIDTH: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + index)
    if slot == 0:
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head, dim = at // DIM, at % DIM
    query = tl.load(queries + index * query_stride + head * query_head_stride + dim, mask=at < WIDTH)
    place = slot * slot_stride + tl.load(entries + index) * entry_stride + head * head_stride + dim
    tl.store(ring + place, query.to(ring.dtype.element_ty), mask=at < WIDTH)
