"""Scores and selection in plain PyTorch: correct on every device, and the reference that faster kernels are held to.

    A = softmax_j( q_i . k_j * scale )      over the candidates j, or all entries visible to query i; in float32
    s_j = by a ScoreRule                    i over the selector queries
    s = pool(s);  keep = sort(topk(s, n*T))

The default rule is Reasoning Path Compression's (arXiv 2505.13866, section 3.2; the official code's `compress_kv`):
softmax over the candidates only, s_j = mean_heads sum_i A_ij, pooled over 7 neighbours. The prompt and the last R
entries are not in its denominator.
"""

import torch
import torch.nn.functional as F

from sglang_rpc.types import ScoreRule

#: Weights of all queries and heads added up.
PLAIN = ScoreRule()
#: Attention logits held at once, the bound of the transient memory: 256 MB of float32.
MAX_LOGITS = 2**26


def head_scores(
    queries: torch.Tensor,
    keys: torch.Tensor,
    scaling: float,
    logit_cap: float = 0.0,
    group: bool = False,
    *,
    rule: ScoreRule = PLAIN,
    before: int = 0,
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score of each candidate by the attention that it gets from the selector queries.

    Args:
        queries: [R, heads, head_dim]; query heads of one KV head are neighbours (GQA).
        keys: [N, kv_heads, head_dim], the candidates, in cache order; if `rule.visible` those of the whole row,
            [before + N + R, kv_heads, head_dim], of which the last R are the queries' own.
        scaling: the layer's softmax scale.
        logit_cap: the layer's soft cap on logits (`cap * tanh(x / cap)`); 0 for none.
        group: keep KV heads apart.
        before: entries before the first candidate, if `rule.visible`.
        values: [N, kv_heads, v_head_dim], the candidates', if `rule.value_power`.

    Returns:
        float32 [1, N], or [kv_heads, N] with `group`: sums, not means, so that tensor-parallel ranks can add theirs.
    """
    count, kv_heads, dim = keys.shape
    window = queries.shape[0]
    rows = window * queries.shape[1] // kv_heads  # query rows that share a KV head
    grouped = queries.view(window, kv_heads, -1, dim).transpose(0, 1).reshape(kv_heads, rows, dim)
    at_once = max(1, MAX_LOGITS // max(1, rows * count))  # KV heads
    unseen = _unseen(window, rows // window, count, keys.device) if rule.visible else None
    candidates = slice(before, count - window) if rule.visible else slice(None)
    scores = torch.cat(
        [
            _over_rows(_attention(q, k, scaling, logit_cap, unseen)[..., candidates], window, rule)
            for q, k in zip(grouped.split(at_once), keys.transpose(0, 1).split(at_once), strict=True)
        ]
    )
    if rule.value_power:
        assert values is not None
        scores *= torch.linalg.vector_norm(values.float(), dim=-1).T ** rule.value_power
    return scores if group else scores.sum(dim=0, keepdim=True)


def _unseen(window: int, per_group: int, count: int, device: torch.device) -> torch.Tensor:
    """bool [window * per_group, count]: entries after a query's own, which is one of the last `window`."""
    own = torch.arange(count - window, count, device=device).repeat_interleave(per_group)
    return torch.arange(count, device=device) > own[:, None]


def _attention(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, logit_cap: float, unseen: torch.Tensor | None
) -> torch.Tensor:
    """softmax over the keys, float32: [heads, rows, dim] x [heads, N, dim] -> [heads, rows, N]."""
    logits = (queries.float() @ keys.float().transpose(1, 2)) * scaling
    if logit_cap > 0:
        logits = logit_cap * torch.tanh(logits / logit_cap)
    if unseen is not None:
        logits.masked_fill_(unseen, float("-inf"))
    return logits.softmax(dim=-1)


def _over_rows(weights: torch.Tensor, window: int, rule: ScoreRule) -> torch.Tensor:
    """Over queries, then over the query heads of each KV head: [heads, window * per_group, N] -> [heads, N]."""
    if rule.one_sum:
        return weights.sum(dim=1)
    each: torch.Tensor = weights.view(len(weights), window, -1, weights.shape[2])
    if rule.over_queries == "squares":
        each = each.square()
    of_head = each.amax(1) if rule.over_queries == "max" else each.sum(1)
    return of_head.amax(1) if rule.over_heads == "max" else of_head.sum(1)


def pool(scores: torch.Tensor, kernel_size: int, pooling: str) -> torch.Tensor:
    """Neighbouring scores pooled, same length: [rows, N] -> [rows, N]. Padding counts in the average (as zeros)."""
    if pooling == "pairs":  # half the score of the entry before it, if that is more
        return torch.maximum(scores, F.pad(scores[:, :-1], (1, 0)) / 2)
    pooled = F.avg_pool1d if pooling == "avg" else F.max_pool1d
    return pooled(scores.unsqueeze(1), kernel_size, stride=1, padding=kernel_size // 2).squeeze(1)


def select(scores: torch.Tensor, keep: int, kernel_size: int, pooling: str) -> torch.Tensor:
    """Indices of the `keep` best-scored candidates, ascending: [rows, N] -> int64 [rows, keep]; needs keep <= N."""
    return pool(scores, kernel_size, pooling).topk(keep, dim=-1).indices.sort(dim=-1).values
