"""H2O (Zhang et al. 2023, arXiv 2306.14048): heavy hitters, by the attention that each entry has got from every token
since it was there."""

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer, policy


@policy(
    paper="H2O, arXiv 2306.14048",
    differs="every P tokens as many as the budget says, where the paper drops one entry a token; the newest R tokens "
    "are kept as its recent half; attention is over prompt and thoughts, and adds up from the first token "
    "generated on, not in the prefill; of a request that is retracted and restored, one step may count twice, "
    "and of one that is prefilled again all begin anew",
    accumulates=True,
)
def h2o(layer: Layer, config: RPCConfig) -> torch.Tensor:
    assert layer.accumulated is not None, "it says above that it accumulates"
    return layer.accumulated.T
