"""The decode server of prefill/decode disaggregation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.fakes.requests import Req

if TYPE_CHECKING:
    from tests.fakes.scheduler import Scheduler


@dataclass(eq=False)
class DecodeRequest:
    req: Req
    host_staged: bool = False


@dataclass(eq=False)
class DecodeTransferQueue:
    queue: list[DecodeRequest] = field(default_factory=list)


@dataclass(eq=False)
class DecodePreallocQueue:
    scheduler: Scheduler
    num_reserved_decode_tokens: int = 512
    queue: list[DecodeRequest] = field(default_factory=list)
    retracted_queue: list[Req] = field(default_factory=list)
    transfer_queue: DecodeTransferQueue = field(default_factory=DecodeTransferQueue)

    @staticmethod
    def _pre_alloc_fill_len(req: Req) -> int:
        """What RPC's hook makes of it."""
        evicted = 0 if req.rpc is None else req.rpc.evicted
        return len(req.origin_input_ids) + max(len(req.output_ids) - 1, 0) - evicted


@dataclass(eq=False)
class NextBatchPlan:
    batch_to_run: Any
    running_batch: Any
