"""The decode server of prefill/decode disaggregation."""

from __future__ import annotations

from typing import Protocol

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import assumed

_DECODE = "sglang.srt.disaggregation.decode"


@assumed(f"{_DECODE}.DecodeRequest", "a request whose KV is on its way")
class DecodeRequest(Protocol):
    host_staged: bool  #: whether its KV goes to the host first
    req: Req


@assumed(f"{_DECODE}.DecodeTransferQueue", "requests that hold a row, to which their KV is being sent")
class DecodeTransferQueue(Protocol):
    queue: list[DecodeRequest]


@assumed(
    f"{_DECODE}.DecodePreallocQueue",
    "requests that wait for a row: new ones, and retracted ones before them; and what is reserved for each that runs",
)
class DecodePreallocQueue(Protocol):
    num_reserved_decode_tokens: int  #: tokens
    queue: list[DecodeRequest]
    retracted_queue: list[Req]
    scheduler: Scheduler
    transfer_queue: DecodeTransferQueue

    @staticmethod
    def _pre_alloc_fill_len(req: Req) -> int:
        """KV entries that a waiting request will have in its row"""


@assumed("sglang.srt.managers.schedule_batch.NextBatchPlan", "what a planned step returns to the event loop")
class NextBatchPlan(Protocol):
    batch_to_run: ScheduleBatch | None
    running_batch: ScheduleBatch
