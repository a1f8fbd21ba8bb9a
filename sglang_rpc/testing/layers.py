"""Made-up layers, whole and as tensor-parallel ranks share them."""

from dataclasses import dataclass, replace

import torch

from sglang_rpc.backends.policy_scores import policy_layer
from sglang_rpc.policy.base import Layer
from sglang_rpc.types import KVLayer


@dataclass(frozen=True)
class MadeUp:
    """One layer's cache, all of which is one request's row, and the queries of its newest tokens."""

    kv: KVLayer
    queries: torch.Tensor  #: [R, heads, head_dim]
    before: int  #: entries before the first candidate
    group: bool = False
    index: int = 0
    seed: int = 0

    def seen(self) -> Layer:
        """As a policy sees it."""
        slots = torch.arange(len(self.kv.keys), device=self.queries.device)
        return policy_layer(
            self.kv, self.queries, slots, index=self.index, before=self.before, seed=self.seed, group=self.group
        )


def made_up_layer(
    candidates: int = 40,
    *,
    heads: int = 8,
    kv_heads: int = 4,
    head_dim: int = 16,
    window: int = 6,
    dtype: torch.dtype = torch.float32,
    logit_cap: float = 0.0,
    group: bool = False,
    accumulated: bool = False,
    index: int = 0,
    before: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Layer:
    """A layer of random KV, equal for equal arguments.

    Args:
        dtype: of the keys; queries have it too, or bfloat16 where keys are FP8.
        group: KV heads are kept apart (`--rpc-aggregation group`).
        accumulated: attention has been added up, as for a policy that `accumulates`.
        index, before, seed: see `Layer`.
    """
    made = made_up(
        candidates,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        window=window,
        dtype=dtype,
        logit_cap=logit_cap,
        accumulated=accumulated,
        index=index,
        before=before,
        device=device,
    )
    return replace(made, group=group, index=index, seed=seed).seen()


def made_up(
    candidates: int = 40,
    *,
    heads: int = 8,
    kv_heads: int = 4,
    head_dim: int = 16,
    window: int = 6,
    dtype: torch.dtype = torch.float32,
    logit_cap: float = 0.0,
    accumulated: bool = False,
    index: int = 0,
    before: int = 5,
    device: torch.device | str = "cpu",
) -> MadeUp:
    """What `made_up_layer` shows."""
    generator = torch.Generator().manual_seed(1000 * index + candidates)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    slots = candidates + window
    keys, queries = random(slots, kv_heads, head_dim), random(window, heads, head_dim)
    got = torch.rand(slots, kv_heads, 1, generator=generator) if accumulated else None
    keys = torch.cat([random(before, kv_heads, head_dim), keys]).to(dtype).to(device)
    values = random(before + slots, kv_heads, head_dim).to(dtype).to(device)
    if got is not None:
        got = torch.cat([torch.zeros(before, kv_heads, 1), got]).to(device)
    queries = queries.to(torch.bfloat16 if dtype.itemsize == 1 else dtype).to(device)
    return MadeUp(KVLayer(keys, values, dtype, head_dim**-0.5, logit_cap, got), queries, before)


def shares(made: MadeUp, ranks: int) -> list[MadeUp]:
    """What each of `ranks` tensor-parallel ranks has of it: its query heads, and the KV heads that these attend to."""
    heads, kv_heads = made.queries.shape[1], made.kv.keys.shape[1]
    result = []
    for rank in range(ranks):
        own = slice(rank * heads // ranks, (rank + 1) * heads // ranks)
        first = rank * kv_heads // ranks
        of = slice(first, first + max(1, kv_heads // ranks))
        got = made.kv.accumulated
        if got is not None:
            # Attention adds up over query heads: of a shared KV head each rank has its own heads' part.
            got = got[:, of] / max(1, ranks // kv_heads)
        kv = replace(made.kv, keys=made.kv.keys[:, of], values=made.kv.values[:, of], accumulated=got)
        result.append(replace(made, kv=kv, queries=made.queries[:, own]))
    return result
