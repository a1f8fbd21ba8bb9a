"""The exact selection of Reasoning Path Compression, in plain PyTorch: correct on every device, and the
reference that faster kernels are held to.

    A = softmax_j( q_i . k_j * scale )      over the candidates j only, in float32
    s_j = mean_heads sum_i A_ij             i over the selector queries
    s = pool_7(s);  keep = sort(topk(s, n*T))

(arXiv 2505.13866, section 3.2; the official code's `compress_kv`.) The prompt and the last R entries are not in the
softmax's denominator.
"""

import torch
import torch.nn.functional as F

#: Attention logits held at once, the bound of the transient memory: 256 MB of float32.
MAX_LOGITS = 2**26


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
    count, kv_heads, dim = keys.shape
    rows = queries.shape[0] * queries.shape[1] // kv_heads  # query rows that share a KV head
    grouped = queries.view(queries.shape[0], kv_heads, -1, dim).transpose(0, 1).reshape(kv_heads, rows, dim)
    at_once = max(1, MAX_LOGITS // max(1, rows * count))  # KV heads
    scores = torch.cat(
        [
            _attention(q, k, scaling, logit_cap).sum(dim=1)
            for q, k in zip(grouped.split(at_once), keys.transpose(0, 1).split(at_once), strict=True)
        ]
    )
    return scores if group else scores.sum(dim=0, keepdim=True)


def _attention(queries: torch.Tensor, keys: torch.Tensor, scaling: float, logit_cap: float) -> torch.Tensor:
    """softmax over the keys, float32: [heads, rows, dim] x [heads, N, dim] -> [heads, rows, N]."""
    logits = (queries.float() @ keys.float().transpose(1, 2)) * scaling
    if logit_cap > 0:
        logits = logit_cap * torch.tanh(logits / logit_cap)
    return logits.softmax(dim=-1)


def pool(scores: torch.Tensor, kernel_size: int, pooling: str) -> torch.Tensor:
    """Neighbouring scores pooled, same length: [rows, N] -> [rows, N]. Padding counts in the average (as zeros)."""
    pooled = F.avg_pool1d if pooling == "avg" else F.max_pool1d
    return pooled(scores.unsqueeze(1), kernel_size, stride=1, padding=kernel_size // 2).squeeze(1)


def select(scores: torch.Tensor, keep: int, kernel_size: int, pooling: str) -> torch.Tensor:
    """Indices of the `keep` best-scored candidates, ascending: [rows, N] -> int64 [rows, keep]; needs keep <= N."""
    return pool(scores, kernel_size, pooling).topk(keep, dim=-1).indices.sort(dim=-1).values
