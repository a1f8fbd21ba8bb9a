"""What a policy is: it scores candidates. How many are kept, and when, is the budget's to say, and the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sglang_rpc.config import RPCConfig


@dataclass(frozen=True)
class Layer:
    """One layer of one request at a compression: all that a policy may look at. N candidates, in cache order."""

    keys: torch.Tensor  #: [N, kv_heads, head_dim]
    queries: torch.Tensor  #: [R, heads, head_dim], those of the newest tokens, oldest first
    newest_keys: torch.Tensor  #: [R, kv_heads, head_dim], those of the newest tokens, which are kept
    scaling: float  #: softmax scale
    logit_cap: float  #: soft cap on attention logits; 0 for none
    index: int  #: which layer
    before: int  #: KV entries in front of the first candidate; the prompt's are among them
    seed: int  #: the same for the same text and --rpc-policy-seed
    #: float32 [N, kv_heads]: attention that each has got since it was generated, where `Policy.accumulates`.
    accumulated: torch.Tensor | None
    #: Attention (softmax over the candidates) that each gets from queries [any, heads, head_dim], summed over queries
    #: and query heads: float32 [1, N], or [kv_heads, N] where KV heads are kept apart.
    attention: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Policy:
    """One row of the table. `differs`: what the engine, or this budget, makes different from the `paper`."""

    name: str
    paper: str
    differs: str
    #: The higher, the sooner kept: float32 [1 or kv_heads, N]. One row is for all heads.
    scores: Callable[[Layer, RPCConfig], torch.Tensor]
    pooling: str | None = None  #: of neighbouring scores: avg, max or none at all
    whole_groups: bool = False  #: its scores of some of a KV head's query heads do not add up to those of all
    accumulates: bool = False  #: needs the attention of every decode step
    seeded: bool = False  #: draws lots
    #: The configuration under which RPC's kernels do the same; None: PyTorch does it.
    as_rpc: Callable[[RPCConfig], RPCConfig] | None = None
