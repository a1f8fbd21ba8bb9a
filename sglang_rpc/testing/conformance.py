"""What must hold of every policy, each rule a function that returns a sentence where it does not."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_rpc.backends.policy_scores import misshapen, summed
from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Layer, Policy, Scores
from sglang_rpc.policy.resolve import as_policy, find_policy
from sglang_rpc.scoring import reference
from sglang_rpc.testing.layers import made_up, made_up_layer, shares

#: Ways in which layers differ: what is tried is named in the sentence.
SHAPES: dict[str, dict[str, Any]] = {
    "40 candidates of 4 KV heads": {},
    "one candidate": dict(candidates=1),
    "a window of one token": dict(window=1),
    "one KV head of 16 query heads (MLA)": dict(heads=16, kv_heads=1, head_dim=72),
    "as many KV heads as query heads": dict(heads=4, kv_heads=4),
    "KV heads kept apart (--rpc-aggregation group)": dict(group=True),
    "one candidate, KV heads kept apart": dict(candidates=1, group=True),
    "float16 keys": dict(dtype=torch.float16),
    "bfloat16 keys": dict(dtype=torch.bfloat16),
    "FP8 keys (--kv-cache-dtype fp8_e5m2)": dict(dtype=torch.float8_e5m2),
    "logits with a soft cap": dict(logit_cap=20.0),
    "no KV entry before the candidates": dict(before=0),
}

#: Operators that make the host wait for a value, or a shape, that only the device knows.
_WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
}


def check_policy(policy: str | Policy | Scores, config: RPCConfig | None = None, device: str = "cpu") -> None:
    """Check that a policy keeps the rules of `docs/policies.md`.

    Args:
        policy: what `--rpc-policy` takes, a `Policy`, or a function of layer and configuration.
        config: the server's configuration that it is given; the defaults if None.
        device: where it scores.

    Raises:
        AssertionError: one sentence per rule that it breaks.
        ConfigError: there is no policy of this name, or it cannot be loaded.
    """
    failures = policy_failures(policy, config, device)
    if failures:
        raise AssertionError("\n".join(failures))


def policy_failures(policy: str | Policy | Scores, config: RPCConfig | None = None, device: str = "cpu") -> list[str]:
    """The sentences of `check_policy`; none if the policy keeps all rules."""
    found = _resolve(policy)
    config = config or RPCConfig()
    failures = list(_shape_failures(found, config, device))
    if not failures:  # the other rules compare scores that can be used
        rules = (_changes_inputs, _waits, _draws, _remembers, _adds_up, _tells_apart)
        failures = [sentence for rule in rules if (sentence := rule(found, config, device))]
    return [f"policy '{found.name}': {sentence}" for sentence in failures]


def keeps(policy: str | Policy | Scores, layer: Layer, count: int, config: RPCConfig | None = None) -> list[list[int]]:
    """Which `count` candidates of a layer stay, ascending: one list, or one per KV head where these are kept apart."""
    found, config = _resolve(policy), config or RPCConfig()
    scores = _scores(found, layer, config)
    kept: list[list[int]] = reference.select(scores, count, *found.pooling_in(config)).tolist()
    return kept


def _resolve(policy: str | Policy | Scores) -> Policy:
    if not isinstance(policy, str):
        return as_policy(policy, policy.name if isinstance(policy, Policy) else getattr(policy, "__name__", "policy"))
    found = find_policy(policy)
    if found is None:
        raise AssertionError(f"policy '{policy}' reads the token stream and scores nothing: there is nothing to check")
    return found


def _layer(policy: Policy, device: str, **shape: Any) -> Layer:
    return made_up_layer(accumulated=policy.accumulates, device=device, **shape)


def _scores(policy: Policy, layer: Layer, config: RPCConfig) -> torch.Tensor:
    group = config.aggregation == "group"
    return summed(policy.scores(layer, config), layer.keys.shape[1], group)


def _shape_failures(policy: Policy, config: RPCConfig, device: str) -> Iterator[str]:
    for name, shape in SHAPES.items():
        layer = _layer(policy, device, **shape)
        own = replace(config, aggregation="group" if shape.get("group") else "all")
        try:
            reason = misshapen(policy.scores(layer, own), layer)
        except Exception as error:  # the author's code runs here
            reason = f"it raised {type(error).__name__}: {error}"
        if reason is not None:
            yield f"with {name}, {reason}"


def _changes_inputs(policy: Policy, config: RPCConfig, device: str) -> str | None:
    layer = _layer(policy, device)
    tensors = {name: value for name, value in vars(layer).items() if isinstance(value, torch.Tensor)}
    before = {name: value.clone() for name, value in tensors.items()}
    policy.scores(layer, config)
    changed = [name for name, value in tensors.items() if not torch.equal(value, before[name])]
    return f"it changes layer.{changed[0]} in place; work on a copy" if changed else None


class _Watch(TorchDispatchMode):
    """Notes the operators that wait for the device. On a CPU nothing waits, but the operators are the same."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        by_mask = name == "aten::index" and any(of is not None and of.dtype == torch.bool for of in args[1])
        if name in _WAITING or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def _waits(policy: Policy, config: RPCConfig, device: str) -> str | None:
    layer = _layer(policy, device)
    with _Watch() as watch:
        policy.scores(layer, config)
    if not watch.seen:
        return None
    return (
        f"the host waits for the device in {watch.seen[0]} (.item(), a branch on a tensor, or an index by a mask); "
        "every request would wait too"
    )


def _draws(policy: Policy, config: RPCConfig, device: str) -> str | None:
    first, again = (policy.scores(_layer(policy, device, seed=7), config) for _ in range(2))
    if not torch.equal(first, again):
        return "it scores the same layer differently the second time; draw from a generator seeded by layer.seed"
    other = policy.scores(_layer(policy, device, seed=8), config)
    if not policy.seeded and not torch.equal(first, other):
        return "its scores depend on layer.seed, which is 0 unless the policy says seeded=True"
    if policy.seeded and torch.equal(first, other):
        return "it says seeded=True, and its scores are the same for another layer.seed"
    return None


def _remembers(policy: Policy, config: RPCConfig, device: str) -> str | None:
    layers = [_layer(policy, device, index=index, candidates=count) for index, count in ((0, 40), (1, 40), (0, 23))]
    forwards = [policy.scores(layer, config) for layer in layers]
    backwards = [policy.scores(layer, config) for layer in reversed(layers)][::-1]
    if all(map(torch.equal, forwards, backwards)):
        return None
    return "its scores of a layer depend on the layers and requests scored before; keep nothing between calls"


def _adds_up(policy: Policy, config: RPCConfig, device: str) -> str | None:
    """Ranks add their scores. A constant factor changes no order: some scores, like a position's, are every rank's."""
    config = replace(config, aggregation="all")
    cases: dict[str, tuple[dict[str, Any], int]] = {"whole KV heads": (dict(heads=8, kv_heads=4), 2)}
    if not policy.whole_groups:
        cases["query heads that share a KV head"] = (dict(heads=8, kv_heads=1), 2)
    for name, (shape, ranks) in cases.items():
        made = made_up(accumulated=policy.accumulates, device=device, **shape)
        whole = _scores(policy, made.seen(), config)
        added = sum((_scores(policy, own.seen(), config) for own in shares(made, ranks)), torch.zeros_like(whole))
        bound = 1e-4 * float(whole.abs().max())
        if not any(torch.allclose(added, factor * whole, rtol=1e-4, atol=bound) for factor in (1, ranks)):
            hint = "use sums over heads, not means or maxima"
            if name != "whole KV heads":
                hint += ", or say whole_groups=True"
            return f"scores of tensor-parallel ranks with {name} do not add up to those of one rank; {hint}"
    return None


def _tells_apart(policy: Policy, config: RPCConfig, device: str) -> str | None:
    scores = _scores(policy, _layer(policy, device), config)
    if float(scores.max()) > float(scores.min()):
        return None
    return "it gives all candidates one score, and which of them are kept is left to chance"
