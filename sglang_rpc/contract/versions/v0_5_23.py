"""SGLang 0.5.23."""

from __future__ import annotations

from typing import Any, Protocol

from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.targets import Assumption
from sglang_rpc.contract.versions.base import Version


class _Scheduler(Protocol):
    def send_abort_output(self, abort_req: Any, req: Req) -> None: ...


def _answer_waiting(scheduler: _Scheduler, abort_req: Any, req: Req) -> None:
    scheduler.send_abort_output(abort_req, req)


VERSION = Version(
    name="0.5.23",
    absent_arguments={},
    moved_targets={},
    assumptions=(
        Assumption("sglang.srt.managers.scheduler.Scheduler.send_abort_output", "answers a request that waits"),
    ),
    answer_waiting=_answer_waiting,
)
