"""TOVA (Oren et al. 2024, arXiv 2401.06104): the attention of the newest token alone."""

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer, policy


@policy(
    paper="TOVA, arXiv 2401.06104",
    differs="every P tokens as many as the budget says, where the paper drops one entry a token; attention is over the "
    "candidates alone, as RPC's",
)
def tova(layer: Layer, config: RPCConfig) -> torch.Tensor:
    return layer.attention(layer.queries[-1:])
