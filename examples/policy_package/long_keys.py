"""A policy for sglang-rpc: keep the entries whose keys are longest."""

from sglang_rpc.policy.base import policy


@policy(pooling="max")
def scores(layer, config):
    return layer.keys.float().norm(dim=-1).T  # [N, kv_heads] -> [kv_heads, N]
