"""What a policy is: it scores candidates. The budget says how many are kept, and when; it is the same for all."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sglang_rpc.config import POOLINGS, RPCConfig
from sglang_rpc.errors import ConfigError


@dataclass(frozen=True)
class Layer:
    """One layer of one request at a compression: all that a policy may look at. N candidates, in cache order."""

    keys: torch.Tensor  #: [N, kv_heads, head_dim]
    queries: torch.Tensor  #: [R, heads, head_dim], those of the newest tokens, oldest first
    newest_keys: torch.Tensor  #: [R, kv_heads, head_dim], those of the newest tokens, which are kept
    scaling: float  #: softmax scale
    logit_cap: float  #: soft cap on attention logits; 0 for none
    index: int  #: which layer
    before: int  #: KV entries before the first candidate; the prompt's are among them
    seed: int  #: equal for equal texts and --rpc-policy-seed, where `Policy.seeded`; else 0
    #: float32 [N, kv_heads]: attention that each has got since it was generated, where `Policy.accumulates`.
    accumulated: torch.Tensor | None
    #: Attention (softmax over the candidates) that each gets from queries [any, heads, head_dim], summed over queries
    #: and query heads: float32 [1, N], or [kv_heads, N] where KV heads are kept apart.
    attention: Callable[[torch.Tensor], torch.Tensor]


#: Of the errors where a policy is refused.
CODE = "config.policy"

#: float32 [1 or kv_heads, N] of one layer: the higher, the sooner kept. One row is for all heads.
#: Changes nothing of the layer.
Scores = Callable[[Layer, RPCConfig], torch.Tensor]


@dataclass(frozen=True)
class Policy:
    """One policy. Raises ConfigError if `pooling` is not one of those below."""

    name: str
    scores: Scores
    pooling: str | None = None  #: of neighbouring scores: avg, max, config (what --rpc-pooling says) or None, none
    whole_groups: bool = False  #: its scores of some of a KV head's query heads do not add up to those of all
    accumulates: bool = False  #: needs the attention of every decode step
    seeded: bool = False  #: draws at random, from `Layer.seed`
    #: The configuration under which RPC's kernels do the same; None: PyTorch does it.
    as_rpc: Callable[[RPCConfig], RPCConfig] | None = None

    def __post_init__(self) -> None:
        allowed = (*POOLINGS, "config", None)
        if self.pooling not in allowed:
            sentence = f"pooling of policy '{self.name}' must be one of {allowed}, got {self.pooling!r}"
            raise ConfigError(sentence, CODE)


def policy(
    *,
    pooling: str | None = None,
    whole_groups: bool = False,
    accumulates: bool = False,
    seeded: bool = False,
    as_rpc: Callable[[RPCConfig], RPCConfig] | None = None,
) -> Callable[[Scores], Policy]:
    """Decorate a function of layer and configuration with what `Policy` says of it; the result is the `Policy`.

    The name under which a package registers it replaces the function's name.
    """

    def record(scores: Scores) -> Policy:
        name = getattr(scores, "__name__", "policy")
        return Policy(name, scores, pooling, whole_groups, accumulates, seeded, as_rpc)

    return record
