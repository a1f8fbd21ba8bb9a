"""RPC in one model runner: its queries and where its KV lies."""

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_rpc.contract.sglang.model import ModelRunner
from sglang_rpc.hooks.query_slots import QuerySlots
from sglang_rpc.memory.query_ring import DraftQueries, QueryRing
from sglang_rpc.memory.speculative_rows import SpeculativeRows
from sglang_rpc.memory.window_slots import WindowPool
from sglang_rpc.types import KVLayer


@dataclass(frozen=True)
class ModelRPC:
    """What the forward pass and the scheduler share."""

    ring: QueryRing
    layers: Sequence[KVLayer]
    every_step: bool  #: whether a policy reads every step's queries, recorded or not
    query_slots: QuerySlots  #: how many the ring has, and whether they are enough
    window_pool: WindowPool | None = None  #: that window layers have for themselves; their KV is not in `layers`
    speculative: SpeculativeRows | None = None  #: of a server that speculates


@dataclass(frozen=True)
class DraftRPC:
    """The same of a draft model's runner. Its KV lies in a pool of its own, in the slots of the model's."""

    queries: DraftQueries
    layers: Sequence[KVLayer]


def model_rpc(model_runner: ModelRunner) -> ModelRPC | None:
    """RPC of a ModelRunner; None where it is off, or before the query ring is there."""
    model: ModelRPC | None = getattr(model_runner, "rpc", None)
    return model


def draft_rpc(model_runner: ModelRunner) -> DraftRPC | None:
    """RPC of a draft model's ModelRunner; None of another, and where it is off."""
    draft: DraftRPC | None = getattr(model_runner, "rpc_draft", None)
    return draft
