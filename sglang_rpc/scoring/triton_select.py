"""Pooling and selection of the best candidates, for all requests and layers, each with its own count.

Scores are sums of exponentials, so never negative, and a float's bits as an integer order them: the kept-th largest
value is found digit by digit (radix select, 8 bits a pass), and one more pass writes the kept indices, which come out
in ascending order without a sort. Of equal scores the earlier candidate is kept. The reference is `reference.select`.

Means over heads and neighbours are left as sums: dividing all of them by one number keeps their order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from sglang_rpc.types import CompressionBatch

_POOL_BLOCK = 1024
_SELECT_BLOCK = 2048


def select(scores: torch.Tensor, batch: CompressionBatch, kernel_size: int, pooling: str) -> torch.Tensor:
    """The `keeps` best-scored candidates of each request, ascending.

    Args:
        scores: float32 [layers, B, heads, most_candidates], contiguous, not negative.

    Returns:
        int32 [layers, B, heads, most_kept]; what stands after a request's own count is not set.
    """
    assert scores.is_contiguous() and scores.dtype == torch.float32 and scores.device == batch.keeps.device
    layers, size, heads, most = scores.shape
    assert (size, most) == (batch.size, batch.most_candidates)
    bits = torch.empty_like(scores, dtype=torch.int32)
    kept = torch.empty((layers, size, heads, batch.most_kept), dtype=torch.int32, device=scores.device)
    sets = layers * size * heads
    _pool_kernel[(sets, triton.cdiv(most, _POOL_BLOCK))](
        scores=scores,
        bits=bits,
        counts=batch.candidates,
        batch_size=size,
        heads=heads,
        most=most,
        KERNEL=kernel_size,
        AVERAGE=pooling == "avg",
        PAIRS=pooling == "pairs",
        BLOCK=_POOL_BLOCK,
    )
    _select_kernel[(sets,)](
        bits=bits,
        kept=kept,
        counts=batch.candidates,
        keeps=batch.keeps,
        batch_size=size,
        heads=heads,
        most=most,
        most_kept=batch.most_kept,
        BLOCK=_SELECT_BLOCK,
        num_warps=8,
    )
    return kept


@triton.jit(do_not_specialize=["batch_size", "most"])
def _pool_kernel(
    scores,
    bits,
    counts,
    batch_size,
    heads,
    most,
    KERNEL: tl.constexpr,
    AVERAGE: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    count = tl.load(counts + tl.program_id(0) // heads % batch_size)
    base = tl.program_id(0).to(tl.int64) * most
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pooled = tl.zeros((BLOCK,), tl.float32)
    # Beyond the ends stand zeros: they count in the average, and no score is below them.
    for step in range(KERNEL):
        at = n + step - KERNEL // 2  # of two: the entry before, then the entry itself
        score = tl.load(scores + base + at, mask=(at >= 0) & (at < count), other=0.0)
        if AVERAGE:
            pooled += score
        elif PAIRS:
            pooled = tl.maximum(pooled / 2, score)
        else:
            pooled = tl.maximum(pooled, score)
    # Without the sign bit: a sum over ranks may be -0.0, and the digits of `_select_kernel` are not a negative's.
    tl.store(bits + base + n, pooled.to(tl.int32, bitcast=True) & 0x7FFFFFFF, mask=n < count)


@triton.jit(do_not_specialize=["batch_size", "most", "most_kept"])
def _select_kernel(bits, kept, counts, keeps, batch_size, heads, most, most_kept, BLOCK: tl.constexpr):
    request = tl.program_id(0) // heads % batch_size
    count, keep = tl.load(counts + request), tl.load(keeps + request)
    bits += tl.program_id(0).to(tl.int64) * most
    kept += tl.program_id(0).to(tl.int64) * most_kept

    # The keep-th largest value, from its highest digit down. `wanted`: which of the values that agree so far it is.
    digits = tl.arange(0, 256)
    value = 0
    wanted = keep
    for turn in tl.static_range(4):
        shift = 24 - 8 * turn
        found = tl.zeros((256,), tl.int32)
        for first in range(0, count, BLOCK):
            n = first + tl.arange(0, BLOCK)
            bit = tl.load(bits + n, mask=n < count, other=0)
            agrees = n < count
            if turn > 0:
                agrees = agrees & ((bit >> (shift + 8)) == value)
            found += tl.histogram((bit >> shift) & 255, 256, mask=agrees)
        at_least = tl.cumsum(found, axis=0, reverse=True)  # values whose digit is this one or higher
        digit = tl.sum((at_least >= wanted).to(tl.int32), axis=0) - 1
        wanted -= tl.sum(tl.where(digits > digit, found, 0), axis=0)
        value = (value << 8) | digit

    written = 0
    equals = 0
    for first in range(0, count, BLOCK):
        n = first + tl.arange(0, BLOCK)
        ok = n < count
        bit = tl.load(bits + n, mask=ok, other=0)
        equal = (ok & (bit == value)).to(tl.int32)
        among_equals = equals + tl.cumsum(equal, axis=0)
        take = ok & ((bit > value) | ((equal > 0) & (among_equals <= wanted)))
        ranks = written + tl.cumsum(take.to(tl.int32), axis=0)
        tl.store(kept + ranks - 1, n, mask=take)
        written += tl.sum(take.to(tl.int32), axis=0)
        equals += tl.sum(equal, axis=0)
