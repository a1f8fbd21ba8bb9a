"""Made-up layers, whole and as tensor-parallel ranks share them."""

import torch

from sglang_rpc.backends.policy_scores import policy_layer
from sglang_rpc.policy.base import Layer
from sglang_rpc.types import KVLayer


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
    generator = torch.Generator().manual_seed(1000 * index + candidates)
    slots = candidates + window
    keys = torch.randn(slots, kv_heads, head_dim, generator=generator).to(dtype).to(device)
    queries = torch.randn(window, heads, head_dim, generator=generator)
    queries = queries.to(torch.bfloat16 if dtype.itemsize == 1 else dtype).to(device)
    got = torch.rand(slots, kv_heads, 1, generator=generator).to(device) if accumulated else None
    layer = KVLayer(keys, keys, dtype, head_dim**-0.5, logit_cap, got)
    every = torch.arange(slots, device=device)
    return policy_layer(layer, queries, every, index=index, before=before, seed=seed, group=group)


def shares(layer: Layer, ranks: int) -> list[Layer]:
    """What each of `ranks` tensor-parallel ranks sees of it: its query heads, and the KV heads that these attend to."""
    heads, kv_heads = layer.queries.shape[1], layer.keys.shape[1]
    result = []
    for rank in range(ranks):
        own = slice(rank * heads // ranks, (rank + 1) * heads // ranks)
        first = rank * kv_heads // ranks
        of = slice(first, first + max(1, kv_heads // ranks))
        keys = torch.cat([layer.keys, layer.newest_keys])[:, of]
        got = None
        if layer.accumulated is not None:
            # Attention adds up over query heads: of a shared KV head each rank has its own heads' part.
            part = layer.accumulated[:, of] / max(1, ranks // kv_heads)
            got = torch.cat([part, torch.zeros_like(layer.newest_keys[:, of, 0], dtype=torch.float32)]).unsqueeze(2)
        every = torch.arange(len(keys), device=keys.device)
        kv = KVLayer(keys, keys, keys.dtype, layer.scaling, layer.logit_cap, got)
        share = policy_layer(
            kv, layer.queries[:, own], every, index=layer.index, before=layer.before, seed=layer.seed, group=False
        )
        result.append(share)
    return result
