"""H2O (Zhang et al. 2023, arXiv 2306.14048): heavy hitters, by the attention that each entry has got from every token
since it was there."""

from __future__ import annotations

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer


def scores(layer: Layer, config: RPCConfig) -> torch.Tensor:
    assert layer.accumulated is not None, "the row in the table says that it accumulates"
    return layer.accumulated.T
