"""R-KV (Cai et al. 2025, arXiv 2505.24133, section 3): important to the newest tokens, and unlike the other keys.

I = maxpool_7(mean_queries softmax(max_group logits))      importance of the candidates, per KV head
S = cos(k_i, k_j)                                          of candidates and the newest tokens
S_ii = 0; S_ij = 0 for the last j with S_ij > 1/2          that one stands for the others
D = softmax_j(mean_i S)                                    redundancy
score = LAMBDA * I - (1 - LAMBDA) * D
"""

import torch
import torch.nn.functional as F

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer, policy

LAMBDA = 0.1  #: the paper's; its code has 0.07
ALIKE = 0.5
KERNEL = 7
#: Numbers of similarities held at once.
MAX_SIMILARITIES = 2**24


@policy(whole_groups=True)
def rkv(layer: Layer, config: RPCConfig) -> torch.Tensor:
    keys = layer.keys.float().transpose(0, 1)  # [kv_heads, N, dim]
    queries = layer.queries.float().transpose(0, 1).unflatten(0, (keys.shape[0], -1))  # [kv_heads, group, R, dim]
    logits = (queries @ keys.unsqueeze(1).transpose(2, 3)) * layer.scaling
    if layer.logit_cap > 0:
        logits = layer.logit_cap * torch.tanh(logits / layer.logit_cap)
    important = logits.amax(1).softmax(-1).mean(1)
    important = F.max_pool1d(important.unsqueeze(1), KERNEL, stride=1, padding=KERNEL // 2).squeeze(1)
    everything = torch.cat([keys, layer.newest_keys.float().transpose(0, 1)], 1)
    redundant = torch.stack([_redundancy(head) for head in everything])[:, : keys.shape[1]]
    return LAMBDA * important - (1 - LAMBDA) * redundant


def _redundancy(keys: torch.Tensor) -> torch.Tensor:
    """[N, dim] -> [N], adding up to 1. In blocks of rows: N x N numbers would be gigabytes."""
    unit, count = F.normalize(keys, dim=-1), len(keys)
    order = torch.arange(count, dtype=torch.int32, device=keys.device)
    total = torch.zeros(count, device=keys.device)
    for rows in order.split(max(1, MAX_SIMILARITIES // count)):
        like = unit[rows] @ unit.T
        like[rows - rows[0], rows] = 0.0
        last = torch.where(like > ALIKE, order, 0).amax(1, keepdim=True)
        total += like.scatter_(1, last.long(), 0.0).sum(0)
    return (total / count).softmax(-1)
