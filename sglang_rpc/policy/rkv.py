"""R-KV (Cai et al. 2025, arXiv 2505.24133, section 3): important to the newest tokens, and unlike the other keys.

I = maxpool_7(mean_queries softmax(max_group logits))      importance, per KV head
S = cos(k_i, k_j); 0 on the diagonal, and for the newest j that is like i (S > 1/2): that one stands for the others
D = softmax_j(mean_i S)                                    redundancy
score = LAMBDA * I - (1 - LAMBDA) * D
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer

LAMBDA = 0.1  #: the paper's; its code has 0.07
ALIKE = 0.5
KERNEL = 7


def scores(layer: Layer, config: RPCConfig) -> torch.Tensor:
    keys = layer.keys.float().transpose(0, 1)  # [kv_heads, N, dim]
    queries = layer.queries.float().transpose(0, 1).unflatten(0, (keys.shape[0], -1))  # [kv_heads, group, R, dim]
    logits = (queries @ keys.unsqueeze(1).transpose(2, 3)) * layer.scaling
    important = logits.amax(1).softmax(-1).mean(1)
    important = F.max_pool1d(important.unsqueeze(1), KERNEL, stride=1, padding=KERNEL // 2).squeeze(1)
    # One head at a time: N x N numbers.
    return LAMBDA * important - (1 - LAMBDA) * torch.stack([_redundancy(head) for head in keys])


def _redundancy(keys: torch.Tensor) -> torch.Tensor:
    """[N, dim] -> [N], adding up to 1."""
    unit = F.normalize(keys, dim=-1)
    like = unit @ unit.T
    like.fill_diagonal_(0.0)
    newest = torch.arange(len(keys), device=keys.device)
    stands_for = torch.where(like > ALIKE, newest, 0).amax(1, keepdim=True)
    return like.scatter_(1, stands_for, 0.0).mean(0).softmax(-1)
