"""TOVA (Oren et al. 2024, arXiv 2401.06104): the attention of the newest token alone."""

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer, policy


@policy()
def tova(layer: Layer, config: RPCConfig) -> torch.Tensor:
    return layer.attention(layer.queries[-1:])
