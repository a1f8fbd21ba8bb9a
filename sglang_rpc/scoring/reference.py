"""The exact selection of Reasoning Path Compression, in plain PyTorch: correct on every device, and the
reference that faster kernels are held to.

    A = softmax_j( q_i . k_j * scale )      over the candidates j only, in float32
    s_j = mean_heads sum_i A_ij             i over the selector queries
    s = pool_7(s);  keep = sort(topk(s, n*T))

(arXiv 2505.13866, section 3.2; the official code's `compress_kv`.) The prompt and the last R entries are not in the
softmax's denominator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def selector_queries(queries: torch.Tensor, selector: str) -> torch.Tensor:
    """The queries that score, out of the last R.

    Args:
        queries: [R, heads, head_dim], oldest first.
        selector: `paper` takes all R. `official` takes the newest R-1 and the newest once more, as the authors'
            code does: it appends the current query to a buffer that already holds it.
    """
    if selector == "paper":
        return queries
    return torch.cat([queries[1:], queries[-1:]])


def head_scores(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, logit_cap: float = 0.0, group: bool = False
) -> torch.Tensor:
    """Attention that each candidate gets from the selector queries, summed over queries and query heads.

    Args:
        queries: [R, heads, head_dim]; query heads of one KV head are neighbours (GQA).
        keys: [N, kv_heads, head_dim], the candidates, in cache order.
        scaling: the layer's softmax scale.
        logit_cap: the layer's soft cap on logits (`cap * tanh(x / cap)`); 0 for none.
        group: keep KV heads apart.

    Returns:
        float32 [1, N], or [kv_heads, N] with `group`: sums, not means, so that tensor-parallel ranks can add theirs.
    """
    kv_heads = keys.shape[1]
    per_group = queries.shape[1] // kv_heads
    rows = []
    for head in range(kv_heads):
        # One KV head at a time bounds the transient at [per_group * R, N] floats, whatever the head count.
        q = queries[:, head * per_group : (head + 1) * per_group].float().reshape(-1, queries.shape[-1])
        logits = (q @ keys[:, head].float().T) * scaling
        if logit_cap > 0:
            logits = logit_cap * torch.tanh(logits / logit_cap)
        rows.append(logits.softmax(dim=-1).sum(dim=0))
    scores = torch.stack(rows)
    return scores if group else scores.sum(dim=0, keepdim=True)


def pool(scores: torch.Tensor, kernel_size: int, pooling: str) -> torch.Tensor:
    """Neighbouring scores pooled, same length: [rows, N] -> [rows, N]. Padding counts in the average (as zeros)."""
    pad = kernel_size // 2
    if pooling == "avg":
        return F.avg_pool1d(scores.unsqueeze(1), kernel_size, stride=1, padding=pad).squeeze(1)
    return F.max_pool1d(scores.unsqueeze(1), kernel_size, stride=1, padding=pad).squeeze(1)


def select(scores: torch.Tensor, keep: int, kernel_size: int, pooling: str) -> torch.Tensor:
    """Indices of the `keep` best-scored candidates, ascending: [rows, N] -> int64 [rows, keep]; needs keep <= N."""
    return pool(scores, kernel_size, pooling).topk(keep, dim=-1).indices.sort(dim=-1).values
