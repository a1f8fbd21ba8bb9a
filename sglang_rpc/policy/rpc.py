"""Reasoning Path Compression (Song et al. 2025, arXiv 2505.13866, section 3.2): the attention of the last R tokens,
pooled over neighbours."""

import torch

from sglang_rpc.policy.base import attention_policy
from sglang_rpc.types import ScoreRule


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


rpc = attention_policy(
    "rpc",
    ScoreRule(softmax="candidates", over_queries="sum", over_heads="sum", value_power=0),
    selector="config",
    pooling="config",
)
