"""H2O (Zhang et al. 2023, arXiv 2306.14048): heavy hitters, by the attention that each entry has got from every token
since it was there."""

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer, policy


@policy(accumulates=True)
def h2o(layer: Layer, config: RPCConfig) -> torch.Tensor:
    assert layer.accumulated is not None, "it says above that it accumulates"
    return layer.accumulated.T
