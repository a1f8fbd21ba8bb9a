"""SnapKV (Li et al. 2024, arXiv 2404.14469): the attention of a window of the newest tokens, max-pooled over
neighbours, so that what stands around an important token stays with it."""

from __future__ import annotations

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer


def scores(layer: Layer, config: RPCConfig) -> torch.Tensor:
    return layer.attention(layer.queries)
