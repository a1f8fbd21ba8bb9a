"""SnapKV (Li et al. 2024, arXiv 2404.14469): the attention of a window of the newest tokens, max-pooled over
neighbours, so that what stands around an important token stays with it."""

from dataclasses import replace

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer, policy


@policy(pooling="max", as_rpc=lambda config: replace(config, selector="paper", pooling="max"))
def snapkv(layer: Layer, config: RPCConfig) -> torch.Tensor:
    return layer.attention(layer.queries)
