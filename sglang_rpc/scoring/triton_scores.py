"""Scores of all candidates of all requests and layers in three launches, read from the pool's slots without a copy.

The first kernel gives each query the log-sum-exp of its logits over a part of the columns that a rule's softmax is
over, the second puts the parts together, the third puts `exp(logit - lse)` of each candidate together over queries and
heads: every key is read twice from memory, a value at most once, and nothing of size queries x candidates is ever
stored. Accumulation is float32. The reference is `reference.head_scores`.

    row of req_to_token   [0, begin) before the candidates | [begin, begin + N) candidates | [.., + window) the newest
    columns               of softmax 'candidates': [begin, begin + N); of 'visible': all, up to each query's own
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from sglang_rpc.scoring.key_table import KeyTable, ValueTable
from sglang_rpc.scoring.reference import PLAIN
from sglang_rpc.types import CompressionBatch, ScoreRule

#: Candidates that one program of the log-sum-exp goes through: enough programs for a GPU even at one request.
SPLIT = 1024
#: Head dims up to this are one tile; longer ones (MLA's latent) are taken in tiles of `_LONG_TILE`.
_ONE_TILE = 256
_LONG_TILE = 64
_VALUE_TILE = 64  # numbers of a value that are squared at once
_COMBINED = 128  # query rows per program of `_combine_kernel`


def candidate_scores(
    table: KeyTable,
    queries: torch.Tensor,
    req_to_token: torch.Tensor,
    batch: CompressionBatch,
    *,
    selector: str,
    group: bool,
    rule: ScoreRule = PLAIN,
    values: ValueTable | None = None,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score of each candidate by the attention that it gets from its request's selector queries.

    Args:
        queries: the query ring [layers, slots, window, heads, head_dim]; see memory.query_ring.
        req_to_token: int32 [rows, max_context], the pool slot of each row position.
        selector: `official` or `paper`, see `policy.rpc.selector_queries`.
        group: keep KV heads apart.
        values: needed if `rule.value_power`.
        lse: natural log-sum-exp of the selector queries over their columns, if known:
            float32 [layers, B, kv_heads, rows], row `r * group_size + g` being query r of head g of the group.

    Returns:
        float32 [layers, B, 1 or kv_heads, most_candidates]; zero after a request's own candidates.
    """
    if lse is None:
        lse = log_sum_exp(table, queries, req_to_token, batch, selector=selector, visible=rule.visible)
    rows = queries.shape[2] * (queries.shape[3] // table.kv_heads)
    assert lse.is_contiguous() and lse.dtype == torch.float32
    assert lse.shape == (table.count, batch.size, table.kv_heads, rows)
    out_heads = table.kv_heads if group else 1
    scores = torch.empty(
        (table.count, batch.size, out_heads, batch.most_candidates), dtype=torch.float32, device=queries.device
    )
    heads = _heads_per_tile(table, queries, rule)
    tiles = _tiles(table, queries, heads)
    grid = (table.count * batch.size * out_heads, triton.cdiv(batch.most_candidates, tiles["BLOCK_N"]))
    assert values is not None or not rule.value_power
    values = values or ValueTable(table.example, table.pointers, dim=0)  # none is read
    _scores_kernel[grid](
        **_arguments(table, queries, req_to_token, batch),
        lse=lse,
        scores=scores,
        lse_rows=lse.shape[-1],
        most=batch.most_candidates,
        value_example=values.example,
        value_pointers=values.pointers,
        value_stride=values.example.stride(0),
        value_head_stride=values.example.stride(1),
        HEADS=heads,
        OUT_HEADS=out_heads,
        NEWEST_TWICE=selector == "official",
        ONE_SUM=rule.one_sum and not rule.value_power,
        SQUARES=rule.over_queries == "squares",
        MAX_OVER_QUERIES=rule.over_queries == "max",
        MAX_OVER_HEADS=rule.over_heads == "max",
        VALUE_POWER=rule.value_power,
        VALUE_DIM=values.dim,
        BLOCK_V=min(_VALUE_TILE, triton.next_power_of_2(max(1, values.dim))),
        **tiles,
    )
    return scores


def log_sum_exp(
    table: KeyTable,
    queries: torch.Tensor,
    req_to_token: torch.Tensor,
    batch: CompressionBatch,
    *,
    selector: str,
    visible: bool = False,
) -> torch.Tensor:
    """Of each selector query's logits over its request's candidates, or over all that it sees if `visible`:
    `candidate_scores`' `lse`."""
    group = queries.shape[3] // table.kv_heads
    tiles, rows = _tiles(table, queries, group), queries.shape[2] * group
    splits = triton.cdiv(batch.longest if visible else batch.most_candidates, SPLIT)
    parts = torch.empty(
        (table.count, batch.size, table.kv_heads, splits, rows), dtype=torch.float32, device=queries.device
    )
    grid = (table.count * batch.size * table.kv_heads, triton.cdiv(rows, tiles["BLOCK_M"]), splits)
    _lse_kernel[grid](
        **_arguments(table, queries, req_to_token, batch),
        out=parts,
        out_rows=rows,
        splits=splits,
        NEWEST_TWICE=selector == "official",
        VISIBLE=visible,
        SPLIT=SPLIT,
        **tiles,
    )
    lse = torch.empty((table.count, batch.size, table.kv_heads, rows), dtype=torch.float32, device=queries.device)
    _combine_kernel[(grid[0], triton.cdiv(rows, _COMBINED))](
        parts=parts, lse=lse, rows=rows, splits=splits, BLOCK=_COMBINED
    )
    return lse


def scratch_bytes(table: KeyTable, queries: torch.Tensor, candidates: int, columns: int, group: bool) -> int:
    """Of device memory that `candidate_scores` takes for a request of so many candidates, its result included.

    Args:
        columns: what the softmax is over, at most: the candidates, or the whole row.
    """
    rows = queries.shape[2] * queries.shape[3]
    splits = triton.cdiv(columns, SPLIT)
    floats: int = table.count * (candidates * (table.kv_heads if group else 1) + rows * (splits + 1))
    return 4 * floats


def _arguments(
    table: KeyTable, queries: torch.Tensor, req_to_token: torch.Tensor, batch: CompressionBatch
) -> dict[str, Any]:
    """What both kernels take, by name. They assume that the innermost dimension of each tensor is contiguous."""
    assert queries.stride(4) == 1 and queries.shape[4] == table.head_dim and queries.shape[3] % table.kv_heads == 0
    assert req_to_token.stride(1) == 1 and req_to_token.dtype == torch.int32
    assert queries.device == req_to_token.device == table.pointers.device == batch.rows.device
    layer_stride, slot_stride, entry_stride, query_head_stride = queries.stride()[:4]
    return dict(
        example=table.example,
        pointers=table.pointers,
        scalings=table.scaling,
        caps=table.caps,
        queries=queries,
        req_to_token=req_to_token,
        rows=batch.rows,
        slots=batch.slots,
        begins=batch.begins,
        counts=batch.candidates,
        windows=batch.windows,
        lengths=batch.lengths,
        batch_size=batch.size,
        kv_heads=table.kv_heads,
        ring_window=queries.shape[2],
        key_stride=table.example.stride(0),
        key_head_stride=table.example.stride(1),
        layer_stride=layer_stride,
        slot_stride=slot_stride,
        entry_stride=entry_stride,
        query_head_stride=query_head_stride,
        row_stride=req_to_token.stride(0),
    )


def _heads_per_tile(table: KeyTable, queries: torch.Tensor, rule: ScoreRule) -> int:
    """Of a KV head's query heads: all, where their rows are put together as the queries' are; else one."""
    together = (rule.over_queries == "max") == (rule.over_heads == "max")
    return queries.shape[3] // table.kv_heads if together else 1


def _tiles(table: KeyTable, queries: torch.Tensor, heads: int) -> dict[str, int | bool]:
    one = table.head_dim <= _ONE_TILE
    return dict(
        GROUP=queries.shape[3] // table.kv_heads,
        DIM=table.head_dim,
        CAPPED=table.capped,
        # Triton's interpreter multiplies the bits of bfloat16 numbers. A GPU adds their exact products in float32.
        WIDEN=triton.knobs.runtime.interpret and queries.dtype == torch.bfloat16,
        BLOCK_M=min(64, max(16, triton.next_power_of_2(queries.shape[2] * heads))),
        BLOCK_N=64 if table.head_dim <= 128 else 32,
        BLOCK_D=max(16, triton.next_power_of_2(table.head_dim)) if one else _LONG_TILE,
    )


@triton.jit
def _logits(
    queries, entry, head, keys, key_slots, kv_head, key_stride, key_head_stride, entry_stride, query_head_stride,
    query_ok, key_ok, scaling, cap,
    DIM: tl.constexpr, CAPPED: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_M, BLOCK_N]; what is not ok is not to be used."""
    logits = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    q_base = queries + entry * entry_stride + head * query_head_stride
    k_base = keys + key_slots * key_stride + kv_head * key_head_stride
    # One stage: of a long head dim, only the tile in hand is in shared memory.
    for first in tl.range(0, DIM, BLOCK_D, num_stages=1):
        dims = first + tl.arange(0, BLOCK_D)
        q = tl.load(q_base[:, None] + dims[None, :], mask=query_ok[:, None] & (dims < DIM)[None, :], other=0.0)
        k = tl.load(k_base[None, :] + dims[:, None], mask=key_ok[None, :] & (dims < DIM)[:, None], other=0.0)
        if WIDEN:
            q, k = q.to(tl.float32), k.to(tl.float32)
        logits = tl.dot(q, k.to(q.dtype), logits, input_precision="ieee")
    logits *= scaling
    if CAPPED:
        logits = cap * (2.0 / (1.0 + tl.exp(-2.0 * logits / cap)) - 1.0)  # tanh
    return logits


@triton.jit(do_not_specialize=["batch_size", "splits"])
def _lse_kernel(
    example, pointers, scalings, caps, queries, req_to_token,
    rows, slots, begins, counts, windows, lengths,
    batch_size, kv_heads, ring_window,
    key_stride, key_head_stride, layer_stride, slot_stride, entry_stride, query_head_stride, row_stride,
    out, out_rows, splits,
    GROUP: tl.constexpr, DIM: tl.constexpr, CAPPED: tl.constexpr, WIDEN: tl.constexpr,
    NEWEST_TWICE: tl.constexpr, VISIBLE: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One KV head of one request and layer; one tile of its query rows; one split of its columns."""
    layer = tl.program_id(0) // (batch_size * kv_heads)
    request = tl.program_id(0) // kv_heads % batch_size
    kv_head = tl.program_id(0) % kv_heads
    row = tl.load(rows + request).to(tl.int64)
    begin, count = tl.load(begins + request), tl.load(counts + request)
    window, length = tl.load(windows + request), tl.load(lengths + request)
    keys = tl.multiple_of(tl.load(pointers + layer).to(tl.pointer_type(example.dtype.element_ty)), 16)
    queries += layer.to(tl.int64) * layer_stride + tl.load(slots + request).to(tl.int64) * slot_stride

    query_rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_ok = query_rows < window * GROUP
    position = tl.minimum(length - window + query_rows // GROUP + NEWEST_TWICE, length - 1)
    head = kv_head * GROUP + query_rows % GROUP
    scaling, cap = tl.load(scalings + layer), tl.load(caps + layer)
    if VISIBLE:
        own = begin + count + query_rows // GROUP  # a query's own column, the last that it sees
        begin, count = 0, begin + count + window

    first = tl.program_id(2) * SPLIT
    last = tl.minimum(first + SPLIT, count)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        key_ok = n < last
        key_slots = tl.load(req_to_token + row * row_stride + begin + n, mask=key_ok, other=0).to(tl.int64)
        logits = _logits(
            queries, position % ring_window, head, keys, key_slots, kv_head,
            key_stride, key_head_stride, entry_stride, query_head_stride, query_ok, key_ok, scaling, cap,
            DIM, CAPPED, WIDEN, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
        logits = tl.where(key_ok[None, :], logits, float("-inf"))
        if VISIBLE:
            logits = tl.where(n[None, :] <= own[:, None], logits, float("-inf"))
        now = tl.maximum(highest, tl.max(logits, axis=1))
        # Of a tile that a query sees nothing of, the maximum is no number to take from another.
        base = tl.where(now == float("-inf"), 0.0, now) if VISIBLE else now
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(logits - base[:, None]), axis=1)
        highest = now
    place = ((layer * batch_size + request) * kv_heads + kv_head) * splits + tl.program_id(2)
    # A split without columns gives -inf, which adds nothing.
    tl.store(out + place.to(tl.int64) * out_rows + query_rows, highest + tl.log(total), mask=query_rows < out_rows)


@triton.jit(do_not_specialize=["splits"])
def _combine_kernel(parts, lse, rows, splits, BLOCK: tl.constexpr):
    """The log-sum-exps of all splits of one KV head of one request and layer."""
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    base = tl.program_id(0).to(tl.int64) * rows
    highest = tl.full((BLOCK,), float("-inf"), tl.float32)
    for split in range(splits):
        highest = tl.maximum(highest, tl.load(parts + base * splits + split * rows + row, mask=row < rows, other=0.0))
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.exp(tl.load(parts + base * splits + split * rows + row, mask=row < rows, other=0.0) - highest)
    tl.store(lse + base + row, highest + tl.log(total), mask=row < rows)


@triton.jit(do_not_specialize=["batch_size", "most"])
def _scores_kernel(
    example, pointers, scalings, caps, queries, req_to_token,
    rows, slots, begins, counts, windows, lengths,
    batch_size, kv_heads, ring_window,
    key_stride, key_head_stride, layer_stride, slot_stride, entry_stride, query_head_stride, row_stride,
    lse, scores, lse_rows, most,
    value_example, value_pointers, value_stride, value_head_stride,
    GROUP: tl.constexpr, HEADS: tl.constexpr, DIM: tl.constexpr, CAPPED: tl.constexpr, WIDEN: tl.constexpr,
    NEWEST_TWICE: tl.constexpr, OUT_HEADS: tl.constexpr,
    ONE_SUM: tl.constexpr, SQUARES: tl.constexpr, MAX_OVER_QUERIES: tl.constexpr, MAX_OVER_HEADS: tl.constexpr,
    VALUE_POWER: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One tile of candidates of one request and layer: all KV heads added up in order, or one, if kept apart.

    A tile's rows are the queries of `HEADS` query heads: row `r * HEADS + h` is query r of head h.
    """
    layer = tl.program_id(0) // (batch_size * OUT_HEADS)
    request = tl.program_id(0) // OUT_HEADS % batch_size
    out_head = tl.program_id(0) % OUT_HEADS
    count = tl.load(counts + request)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    key_ok = n < count
    scores += tl.program_id(0).to(tl.int64) * most
    if tl.program_id(1) * BLOCK_N >= count:
        tl.store(scores + n, tl.zeros((BLOCK_N,), tl.float32), mask=n < most)
        return
    row, begin = tl.load(rows + request).to(tl.int64), tl.load(begins + request)
    window, length = tl.load(windows + request), tl.load(lengths + request)
    keys = tl.multiple_of(tl.load(pointers + layer).to(tl.pointer_type(example.dtype.element_ty)), 16)
    queries += layer.to(tl.int64) * layer_stride + tl.load(slots + request).to(tl.int64) * slot_stride
    key_slots = tl.load(req_to_token + row * row_stride + begin + n, mask=key_ok, other=0).to(tl.int64)
    scaling, cap = tl.load(scalings + layer), tl.load(caps + layer)

    heads_here = kv_heads // OUT_HEADS
    score = tl.zeros((BLOCK_N,), tl.float32)
    for kv_head in range(out_head * heads_here, (out_head + 1) * heads_here):
        lse_base = lse + ((layer * batch_size + request) * kv_heads + kv_head).to(tl.int64) * lse_rows
        of_kv_head = tl.zeros((BLOCK_N,), tl.float32)
        for first_head in range(0, GROUP, HEADS):
            # One sum of everything is one sum: what is added, in which order, is its rounding.
            part = score if ONE_SUM else tl.zeros((BLOCK_N,), tl.float32)
            for first in range(0, window * HEADS, BLOCK_M):
                query_rows = first + tl.arange(0, BLOCK_M)
                query_ok = query_rows < window * HEADS
                query, member = query_rows // HEADS, first_head + query_rows % HEADS
                position = tl.minimum(length - window + query + NEWEST_TWICE, length - 1)
                logits = _logits(
                    queries, position % ring_window, kv_head * GROUP + member, keys, key_slots, kv_head,
                    key_stride, key_head_stride, entry_stride, query_head_stride, query_ok, key_ok, scaling, cap,
                    DIM, CAPPED, WIDEN, BLOCK_M, BLOCK_N, BLOCK_D,
                )  # fmt: skip
                exponent = logits - tl.load(lse_base + query * GROUP + member, mask=query_ok, other=0.0)[:, None]
                weight = tl.where(query_ok[:, None], tl.exp(exponent), 0.0)
                if MAX_OVER_QUERIES:
                    part = tl.maximum(part, tl.max(weight, axis=0))
                else:
                    part += tl.sum(weight * weight if SQUARES else weight, axis=0)
            if ONE_SUM:
                score = part
            elif MAX_OVER_HEADS:
                of_kv_head = tl.maximum(of_kv_head, part)
            else:
                of_kv_head += part
        if VALUE_POWER > 0:
            values = tl.load(value_pointers + layer).to(tl.pointer_type(value_example.dtype.element_ty))
            of_kv_head *= _value_factor(
                tl.multiple_of(values, 16), key_slots * value_stride + kv_head * value_head_stride, key_ok,
                VALUE_POWER, VALUE_DIM, BLOCK_N, BLOCK_V,
            )  # fmt: skip
        if not ONE_SUM:
            score += of_kv_head
    tl.store(scores + n, tl.where(key_ok, score, 0.0), mask=n < most)


@triton.jit
def _value_factor(
    values, offsets, ok,
    POWER: tl.constexpr, DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Euclidean norm of each value, or its square: float32 [BLOCK_N]."""
    total = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, DIM, BLOCK_V):
        dims = first + tl.arange(0, BLOCK_V)
        mask = ok[:, None] & (dims < DIM)[None, :]
        value = tl.load(values + offsets[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(value * value, axis=1)
    return tl.sqrt(total) if POWER == 1 else total
