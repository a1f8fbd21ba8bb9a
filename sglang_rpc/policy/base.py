"""What a policy is: it scores candidates. The budget says how many are kept, and when; it is the same for all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from sglang_rpc.config import POOLINGS, RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.types import ScoreRule


class ByRule(Protocol):
    """Scores of one layer's candidates by a rule: float32 [1, N], or [kv_heads, N] where KV heads are kept apart."""

    def __call__(self, rule: ScoreRule, selector: str = "paper") -> torch.Tensor:
        """`selector`: which of the newest queries score; see `policy.rpc.selector_queries`."""


@dataclass(frozen=True)
class Layer:
    """One layer of one request at a compression: all that a policy may look at. N candidates, in cache order."""

    keys: torch.Tensor  #: [N, kv_heads, head_dim]
    values: torch.Tensor  #: [N, kv_heads, v_head_dim]; of MLA a part of the latent, one for all heads
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
    #: Scores by a `ScoreRule` of the newest queries, summed over KV heads: as `attention`, in shape and dtype.
    score: ByRule


#: Of the errors where a policy is refused.
CODE = "config.policy"

#: float32 [1 or kv_heads, N] of one layer: the higher, the sooner kept. One row is for all heads.
#: Changes nothing of the layer.
Scores = Callable[[Layer, RPCConfig], torch.Tensor]


@dataclass(frozen=True)
class Policy:
    """One policy. Raises ConfigError if `pooling` or `selector` is not one of those below."""

    name: str
    scores: Scores
    #: Of neighbouring scores: avg, max, config (what --rpc-pooling says), pairs (an entry also has half the score of
    #: the one before it) or None, none.
    pooling: str | None = None
    whole_groups: bool = False  #: its scores of some of a KV head's query heads do not add up to those of all
    accumulates: bool = False  #: needs the attention of every decode step
    seeded: bool = False  #: draws at random, from `Layer.seed`
    #: What `scores` computes, which kernels compute too; None: anything, in PyTorch. Set by `attention_policy`.
    rule: ScoreRule | None = None
    selector: str = "paper"  #: whom the rule asks: paper, official, config (what --rpc-selector says); see `rpc`

    def __post_init__(self) -> None:
        allowed = (*POOLINGS, "config", "pairs", None)
        if self.pooling not in allowed:
            sentence = f"pooling of policy '{self.name}' must be one of {allowed}, got {self.pooling!r}"
            raise ConfigError(sentence, CODE)
        # A query counted twice would stand at another token than its own, and see what came after it.
        selectors = ("paper",) if self.rule is not None and self.rule.visible else ("paper", "official", "config")
        if self.selector not in selectors:
            under = " under softmax 'visible'" if len(selectors) == 1 else ""
            sentence = f"selector of policy '{self.name}' must be one of {selectors}{under}, got {self.selector!r}"
            raise ConfigError(sentence, CODE)

    def selector_in(self, config: RPCConfig) -> str:
        """Which of the newest queries the rule asks: `paper` or `official`."""
        return config.selector if self.selector == "config" else self.selector

    def pooling_in(self, config: RPCConfig) -> tuple[int, str]:
        """Kernel size and kind of the pooling over neighbouring scores."""
        if self.pooling is None:
            return 1, "max"  # of one score: none
        if self.pooling == "pairs":
            return 2, "pairs"
        return config.kernel_size, config.pooling if self.pooling == "config" else self.pooling


def policy(
    *,
    pooling: str | None = None,
    whole_groups: bool = False,
    accumulates: bool = False,
    seeded: bool = False,
) -> Callable[[Scores], Policy]:
    """Decorate a function of layer and configuration with what `Policy` says of it; the result is the `Policy`.

    The name under which a package registers it replaces the function's name.
    """

    def record(scores: Scores) -> Policy:
        name = getattr(scores, "__name__", "policy")
        return Policy(name, scores, pooling, whole_groups, accumulates, seeded)

    return record


def attention_policy(name: str, rule: ScoreRule, *, selector: str = "paper", pooling: str | None = None) -> Policy:
    """A policy that scores by one rule, in the kernels where they can run. Raises ConfigError like `Policy`."""

    def scores(layer: Layer, config: RPCConfig) -> torch.Tensor:
        return layer.score(rule, config.selector if selector == "config" else selector)

    # A maximum over some of a KV head's query heads says nothing of the maximum over all.
    apart = rule.over_heads == "max"
    return Policy(name, scores, pooling, whole_groups=apart, rule=rule, selector=selector)
