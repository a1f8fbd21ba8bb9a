"""TOVA (Oren et al. 2024, arXiv 2401.06104): the attention of the newest token alone."""

from __future__ import annotations

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer


def scores(layer: Layer, config: RPCConfig) -> torch.Tensor:
    return layer.attention(layer.queries[-1:])
