"""StreamingLLM (Xiao et al. 2024, arXiv 2309.17453): the first tokens of the sequence, attention's sinks, and the
newest."""

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer, policy

#: Tokens at the beginning of a sequence that are always kept (the paper's figure 1).
SINKS = 4


@policy()
def streaming(layer: Layer, config: RPCConfig) -> torch.Tensor:
    count = layer.keys.shape[0]
    newer = torch.arange(count, dtype=torch.float32, device=layer.keys.device)
    newer[: max(0, SINKS - layer.before)] = count
    return newer[None]
