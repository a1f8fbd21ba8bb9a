"""Random batches of compressions: pools, rows of scattered pages, query rings."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sglang_rpc.types import Compression, CompressionBatch, KVLayer
from tests.kernels.conftest import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def float8_dtypes(capability: tuple[int, int] | None) -> tuple[torch.dtype, ...]:
    """Those that Triton reads on a GPU of `capability`, or in its interpreter (None)."""
    older = capability is not None and capability < (8, 9)
    return (torch.float8_e5m2,) if older else (torch.float8_e4m3fn, torch.float8_e5m2)


_COMPILED = torch.cuda.is_available() and not INTERPRETED
FLOAT8 = float8_dtypes(torch.cuda.get_device_capability() if _COMPILED else None)


@dataclass
class Case:
    layers: list[KVLayer]
    queries: torch.Tensor  #: [layers, slots, ring window, heads, head_dim]
    req_to_token: torch.Tensor  #: int32 [rows, context]
    compressions: list[Compression]

    @property
    def batch(self) -> CompressionBatch:
        return CompressionBatch.of(self.compressions, DEVICE)

    def slots(self, c: Compression) -> torch.Tensor:
        """The pool slots of `c`'s region."""
        return self.req_to_token[c.row, c.begin : c.end].long()


def case(
    sizes: list[tuple[int, int]],  # candidates, keep of each request
    *,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    value_dim: int | None = None,
    window: int = 8,
    page: int = 1,
    dtype: torch.dtype = torch.float32,
    queries: torch.dtype | None = None,
    cap: float = 0.0,
    seed: int = 0,
) -> Case:
    """Rows in random order, each of a random prompt, a few entries kept whole, its candidates and its window, in
    pages scattered over the pool; a pool somewhat larger than all of them."""
    made = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=made))

    compressions, rows = [], torch.randperm(len(sizes) + 3, generator=made)
    ring_slots = torch.randperm(len(sizes) + 2, generator=made)
    for index, (candidates, keep) in enumerate(sizes):
        prompt, whole = number(1, 40), number(0, 9)
        end = prompt + whole + candidates + window
        compressions.append(
            Compression(
                row=int(rows[index]),
                slot=int(ring_slots[index]) + 1,  # 0 is the bin
                prompt_length=prompt,
                generated=end - prompt + number(0, 3000),  # as many were evicted before
                window=window,
                begin=prompt + whole,
                end=end,
                keep=keep,
                event=1,
                late=False,
            )
        )
    context = max(c.end for c in compressions) + page
    pages = sum(-(-c.end // page) for c in compressions) + 3
    order = torch.randperm(pages, generator=made) + 1  # page 0 is SGLang's padding
    req_to_token = torch.zeros(len(sizes) + 3, context, dtype=torch.int32)
    for c in compressions:
        own, order = order[: -(-c.end // page)], order[-(-c.end // page) :]
        req_to_token[c.row, : c.end] = (own[:, None] * page + torch.arange(page)).flatten()[: c.end]

    def random(*shape: int, like: torch.dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=made).to(like).to(DEVICE)

    pool = (pages + 1) * page
    stored = torch.uint8 if dtype.itemsize == 1 else dtype  # as SGLang stores FP8
    made_layers = [
        KVLayer(
            keys=random(pool, kv_heads, head_dim, like=dtype).view(stored),
            values=random(pool, kv_heads, value_dim or head_dim, like=dtype).view(stored),
            dtype=dtype,
            scaling=head_dim**-0.5 * (1 + index / 4),
            logit_cap=cap,
        )
        for index in range(layers)
    ]
    held = queries or (torch.bfloat16 if dtype.itemsize == 1 else dtype)
    ring = random(layers, len(sizes) + 3, window + 2, heads, head_dim, like=held)
    return Case(made_layers, ring, req_to_token.to(DEVICE), compressions)
