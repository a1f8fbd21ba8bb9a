"""RPC in one scheduler (hooks.runtime.SchedulerRPC), as far as single hooks need it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.hooks.runtime import SchedulerRPC
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.memory.speculative_rows import SpeculativeRows
from sglang_rpc.runtime.compressor import Compressor
from sglang_rpc.runtime.per_step import PerStep
from sglang_rpc.runtime.request_state import RequestState
from tests.fakes.requests import Req
from tests.fakes.scheduler import Scheduler


def ring(slots: int) -> QueryRing:
    """A query ring for hooks that count its slots."""
    return QueryRing(layers=1, slots=slots, rows=1000, window=1, heads=1, head_dim=1, dtype=torch.float32, device="cpu")


@dataclass(eq=False)
class Runtime:
    """Without a compressor, for hooks that only plan; without memory for backups."""

    scheduler: Scheduler
    config: RPCConfig = field(default_factory=RPCConfig)
    compressor: Compressor | None = None
    ring: QueryRing = field(default_factory=lambda: ring(slots=1000))
    backups: HostBackup = field(default_factory=lambda: HostBackup([], 0))
    recording_ahead: list[RequestState] = field(default_factory=list)
    own_windows: bool = False
    never_backed_up: str = ""
    step: int = 0
    pipelined: bool = False
    decode_server: bool = False
    growth: PerStep[Req, int] = field(default_factory=PerStep)
    retraction_is_certain: bool | None = None
    speculative: SpeculativeRows | None = None
    stride: int = 1
    reserve: int = 0

    in_micro_batches = SchedulerRPC.in_micro_batches

    @property
    def page_size(self) -> int:
        return self.scheduler.page_size
