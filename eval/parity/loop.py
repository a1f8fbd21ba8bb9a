"""A plain transformers decode loop with RPC, one request at a time: what the server's answers are compared with.

No code of the package's: the same model through another library, the method written once more from the paper and the
authors' code (arXiv 2505.13866, section 3.2).

    A = softmax_j( q_i . k_j * scale )     over the candidates j
    s = pool(mean_heads sum_i A_ij)        i over the selector queries
    keep the n * int(P / c) best of each layer after the n-th compression, and the last R
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache

RECORDING = "recording_attention"


@dataclass(frozen=True)
class Method:
    """P, R, c and the variant, by the names of the server's configuration."""

    interval: int
    window: int
    ratio: float
    kernel_size: int = 7
    pooling: str = "avg"
    aggregation: str = "all"
    selector: str = "official"


@dataclass(frozen=True)
class Thoughts:
    """Token ids of the think markers, and whether the prompt leaves a segment open. None: everything is compressed."""

    start: int | None
    end: int
    open: bool


@dataclass(frozen=True)
class Generated:
    ids: list[int]
    gaps: list[float]  #: of each token, how far the second-best logit lay below the best
    compressions: int
    held: int  #: generated KV entries at the end


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, dropout: float = 0.0, **_: Any
) -> tuple[torch.Tensor, None]:
    """transformers' attention function; what it is given last stays with the module, for the score."""
    module.newest = (query[0, :, -1], scaling)  # [heads, dim]
    groups = query.shape[1] // key.shape[1]
    out = functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        is_causal=query.shape[2] > 1,
        scale=scaling,
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(RECORDING, attend)


@torch.inference_mode()
def generate(
    model: Any, prompt: Sequence[int], most: int, stop: set[int], method: Method | None, thoughts: Thoughts | None
) -> Generated:
    """Greedy decoding of at most `most` tokens; the model must have been loaded with RECORDING attention."""
    attentions = [layer.self_attn for layer in model.model.layers]
    device = model.device
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=torch.tensor([prompt], device=device), past_key_values=cache, use_cache=True).logits
    ids, gaps, events = [], [], 0
    first = 0 if thoughts is None or thoughts.open else None  # where the compressible region begins
    window: deque[list[torch.Tensor]] = deque(maxlen=method.window if method else 1)
    while True:
        best, second = logits[0, -1].float().topk(2).values.tolist()
        ids.append(int(logits[0, -1].argmax()))
        gaps.append(best - second)
        if ids[-1] in stop or len(ids) == most:
            break
        position = torch.tensor([[len(prompt) + len(ids) - 1]], device=device)
        logits = model(
            input_ids=torch.tensor([[ids[-1]]], device=device),
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        ).logits
        if method is None:
            continue
        window.append([attention.newest[0] for attention in attentions])
        if first is None and ids[-1] == getattr(thoughts, "start", None):
            first = len(ids)
        if first is None or (thoughts is not None and thoughts.end in ids):
            continue
        due, rest = divmod(len(ids) - first - method.window, method.interval)
        if due >= 1 and rest == 0:
            events = due
            keep = due * int(method.interval / method.ratio)
            for index, attention in enumerate(attentions):
                queries = torch.stack([step[index] for step in window])
                _compress(cache.layers[index], queries, attention.newest[1], len(prompt) + first, keep, method)
    held = cache.layers[0].keys.shape[2] - len(prompt)
    return Generated(ids, gaps, events, held)


def _compress(layer: Any, queries: torch.Tensor, scaling: float, begin: int, keep: int, method: Method) -> None:
    """`layer`: one of the cache's, keys and values [1, kv_heads, entries, dim]; queries [R, heads, dim]."""
    if method.selector == "official":  # the newest R-1, the newest of them twice
        queries = torch.cat([queries[1:], queries[-1:]])
    end = layer.keys.shape[2] - method.window
    candidates = layer.keys[0, :, begin:end].float()
    kv_heads, count, dim = candidates.shape
    grouped = queries.float().view(len(queries), kv_heads, -1, dim)
    attention = (torch.einsum("rkgd,knd->kgrn", grouped, candidates) * scaling).softmax(-1).sum(2)
    scores = attention.mean(1) if method.aggregation == "group" else attention.mean((0, 1))[None]
    pool = functional.avg_pool1d if method.pooling == "avg" else functional.max_pool1d
    scores = pool(scores[:, None], method.kernel_size, 1, method.kernel_size // 2)[:, 0]
    chosen = scores.topk(min(keep, count)).indices.sort(-1).values.expand(kv_heads, -1)[None, :, :, None] + begin
    for name in ("keys", "values"):
        whole = getattr(layer, name)
        kept = whole.gather(2, chosen.expand(-1, -1, -1, whole.shape[3]))
        setattr(layer, name, torch.cat([whole[:, :, :begin], kept, whole[:, :, end:]], 2))
