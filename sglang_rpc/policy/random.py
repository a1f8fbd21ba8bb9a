"""Any of them, with equal chances: the baseline that a score has to beat. The prompt is kept, as under every policy,
and with it alone chance is said to do as well as scores (arXiv 2609.03430)."""

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer, policy


@policy(seeded=True)
def random(layer: Layer, config: RPCConfig) -> torch.Tensor:
    # Drawn on the host: every tensor-parallel rank, whatever its device, draws the same.
    generator = torch.Generator().manual_seed(layer.seed * 1009 + layer.index)
    return torch.rand(1, layer.keys.shape[0], generator=generator).to(layer.keys.device)
