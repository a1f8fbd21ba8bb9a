"""SnapKV (Li et al. 2024, arXiv 2404.14469): the attention of a window of the newest tokens, max-pooled over
neighbours, so that what stands around an important token stays with it."""

from sglang_rpc.policy.base import attention_policy
from sglang_rpc.types import ScoreRule

snapkv = attention_policy(
    "snapkv",
    ScoreRule(softmax="candidates", over_queries="sum", over_heads="sum", value_power=0),
    pooling="max",
)
