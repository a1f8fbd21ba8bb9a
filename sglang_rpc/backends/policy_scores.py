"""A policy's scores of one layer, as selection takes them, and the check of a policy before anything is served."""

from dataclasses import replace
from functools import partial

import torch

from sglang_rpc.backends.random_layers import random_layer
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.base import CODE, Layer, Policy
from sglang_rpc.policy.rpc import selector_queries
from sglang_rpc.scoring import reference
from sglang_rpc.types import KVLayer, ScoreRule

#: Candidates of the random layer: unlike any head count, so that a transposed result shows.
CANDIDATES = 19
BEFORE = 5  #: entries of it before the first candidate


def policy_layer(
    layer: KVLayer,
    queries: torch.Tensor,
    slots: torch.Tensor,
    *,
    index: int,
    before: int,
    seed: int,
    group: bool,
) -> Layer:
    """What a policy sees of one layer of one request.

    Args:
        queries: [R, heads, head_dim], oldest first.
        slots: int64 [before + N + R], pool slots of the whole row in cache order: what stands before the candidates,
            theirs, then the newest tokens'.
        group: whether KV heads are kept apart.
    """
    candidates, newest = slots[before:].split([len(slots) - before - len(queries), len(queries)])
    keys, values = (buffer[candidates].view(layer.dtype) for buffer in (layer.keys, layer.values))
    attention = partial(reference.head_scores, scaling=layer.scaling, logit_cap=layer.logit_cap, group=group)

    def score(rule: ScoreRule, selector: str = "paper") -> torch.Tensor:
        over = layer.keys[slots].view(layer.dtype) if rule.visible else keys
        return attention(selector_queries(queries, selector), over, rule=rule, before=before, values=values)

    return Layer(
        keys=keys,
        values=values,
        queries=queries,
        newest_keys=layer.keys[newest].view(layer.dtype),
        scaling=layer.scaling,
        logit_cap=layer.logit_cap,
        index=index,
        before=before,
        seed=seed,
        accumulated=None if layer.accumulated is None else layer.accumulated[candidates].squeeze(2),
        attention=partial(attention, keys=keys),
        score=score,
    )


def summed(score: torch.Tensor, kv_heads: int, group: bool) -> torch.Tensor:
    """[1 or kv_heads, N] -> one row per set that is kept: [kv_heads, N] with `group`, else [1, N]."""
    return score.expand(kv_heads, -1) if group else score.sum(0, keepdim=True)


def misshapen(score: object, layer: Layer) -> str | None:
    """Why selection cannot use these scores, as a part of a sentence; None if it can. Waits for the device."""
    count, kv_heads = layer.keys.shape[:2]
    if not isinstance(score, torch.Tensor):
        return f"it must return a tensor, got {type(score).__name__}"
    allowed = sorted({(1, count), (kv_heads, count)})
    if tuple(score.shape) not in allowed:
        return f"it must return [1 or kv_heads, N], here {' or '.join(map(str, allowed))}, got {tuple(score.shape)}"
    if score.dtype != torch.float32:
        return f"it must return float32, got {score.dtype}"
    if score.device != layer.keys.device:
        return f"it must return a tensor on {layer.keys.device}, got one on {score.device}"
    bad = int((~score.isfinite()).sum())
    return f"it must return finite numbers, and {bad} of {score.numel()} are not" if bad else None


def try_policy(policy: Policy, config: RPCConfig, like: KVLayer, queries: torch.Tensor) -> None:
    """Let the policy score random KV of the model's shape, dtype and device; for start-up, as it waits for the device.

    Args:
        queries: the query ring of one layer, [slots, R, heads, head_dim], whose shape is used.

    Raises:
        ConfigError: it fails, or its scores cannot be used.
    """
    generator = torch.Generator().manual_seed(0)
    slots = torch.arange(BEFORE + CANDIDATES + config.window, device=like.keys.device)
    kv = random_layer(like, len(slots), generator)
    if policy.accumulates:
        accumulated = torch.rand(len(slots), kv.keys.shape[1], 1, generator=generator)
        kv = replace(kv, accumulated=accumulated.to(slots.device))
    query = torch.randn(config.window, *queries.shape[2:], generator=generator).to(queries.dtype).to(slots.device)
    layer = policy_layer(kv, query, slots, index=0, before=BEFORE, seed=0, group=config.aggregation == "group")
    try:
        reason = misshapen(policy.scores(layer, config), layer)
    except Exception as error:  # a package's own code runs here
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        raise ConfigError(
            f"policy '{policy.name}' cannot score a layer of this model: {reason}; "
            "sglang_rpc.testing.check_policy tells its author more",
            CODE,
        )
