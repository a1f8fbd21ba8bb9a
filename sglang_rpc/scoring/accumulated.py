"""Attention that KV entries have got so far, added up decode step by decode step (H2O's score)."""

import torch

from sglang_rpc.types import KVLayer

#: Numbers of gathered keys held at once, the bound of the transient memory: 256 MB of float32.
MAX_KEYS = 2**26


def accumulate(layer: KVLayer, queries: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor) -> None:
    """Add one decode step's attention to `layer.accumulated`, in place, without waiting for the device.

    Args:
        queries: [B, heads, head_dim], one per row; query heads of one KV head are neighbours.
        slots: int [B, longest], each row's slots in order; what stands after its length is not read.
        lengths: int [B], physical, the newest token included.
    """
    assert layer.accumulated is not None
    rows, longest = slots.shape
    at_once = max(1, MAX_KEYS // max(1, longest * layer.keys[0].numel()))
    for first in range(0, rows, at_once):
        part = slice(first, first + at_once)
        _accumulate(layer, queries[part], slots[part].long(), lengths[part])


def _accumulate(layer: KVLayer, queries: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor) -> None:
    there = torch.arange(slots.shape[1], device=slots.device) < lengths[:, None]
    slots = torch.where(there, slots, 0)  # slot 0 is padding, in SGLang's pools
    keys = layer.keys[slots].view(layer.dtype).float()  # [B, longest, kv_heads, dim]
    grouped = queries.float().unflatten(1, (keys.shape[2], -1))
    logits = torch.einsum("bkgd,blkd->bkgl", grouped, keys) * layer.scaling
    if layer.logit_cap > 0:
        logits = layer.logit_cap * torch.tanh(logits / layer.logit_cap)
    weights = logits.masked_fill(~there[:, None, None], float("-inf")).softmax(-1).sum(2)
    assert layer.accumulated is not None
    layer.accumulated.index_put_((slots,), weights.transpose(1, 2).unsqueeze(3), accumulate=True)
