"""SGLang 0.5.22."""

from __future__ import annotations

from typing import Any, Protocol

from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.targets import Assumption
from sglang_rpc.contract.versions.base import Version

_COMPONENTS = "sglang.srt.managers.scheduler_components"


class _Sender(Protocol):
    def send_output(self, output: Any, recv_obj: Req) -> None: ...


class _Channels(Protocol):
    send_to_tokenizer: _Sender


class _Scheduler(Protocol):
    ipc_channels: _Channels


def _answer_waiting(scheduler: _Scheduler, abort_req: Any, req: Req) -> None:
    # What `Scheduler.send_abort_output` does from 0.5.23 on, but for the Rust server, which RPC refuses.
    scheduler.ipc_channels.send_to_tokenizer.send_output(abort_req, req)


VERSION = Version(
    name="0.5.22",
    # The kernels that these switch on came with 0.5.23.
    absent_arguments={"enable_nvidia_megakernel": False, "enable_amd_monokernel": False},
    moved_targets={
        # Responses are made here, those without tokens yet too, which have no receipt to show.
        "sglang.srt.entrypoints.openai.serving_responses.OpenAIServingResponses._build_response": (
            "sglang.srt.entrypoints.openai.protocol.ResponsesResponse.from_request"
        ),
    },
    assumptions=(
        Assumption("sglang.srt.managers.scheduler.Scheduler.init_ipc_channels", "sets `ipc_channels`"),
        Assumption(
            f"{_COMPONENTS}.ipc_channels.SchedulerIpcChannels",
            "the way to the tokenizer's process",
            ("send_to_tokenizer",),
        ),
        Assumption(f"{_COMPONENTS}.output_sender.SenderWrapper.send_output", "answers a request that waits"),
    ),
    answer_waiting=_answer_waiting,
)
