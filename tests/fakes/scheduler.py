"""The scheduler."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.fakes.batches import ScheduleBatch
from tests.fakes.memory import Allocator, ReqToTokenPool, Tree
from tests.fakes.models import ModelConfig, ModelRunner, ServerArgs
from tests.fakes.requests import Req


@dataclass(eq=False)
class TpModelWorker:
    model_runner: ModelRunner = field(default_factory=ModelRunner)


@dataclass(eq=False)
class DraftWorker:
    """`runners` are those of its models."""

    runners: list[ModelRunner] = field(default_factory=list)

    def _draft_model_runners(self) -> list[ModelRunner]:
        return self.runners


@dataclass(eq=False)
class BeamCoordinator:
    retired: list[Req] = field(default_factory=list)

    def retire_group(self, req: Req) -> None:
        self.retired.append(req)


@dataclass(eq=False)
class Sender:
    """`sent` has the answers, each with the request that it is to."""

    sent: list[tuple[object, Req]] = field(default_factory=list)

    def send_output(self, output: object, recv_obj: Req) -> None:
        self.sent.append((output, recv_obj))


@dataclass(eq=False)
class IpcChannels:
    send_to_tokenizer: Sender = field(default_factory=Sender)


@dataclass(eq=False)
class DPAttnAdapter:
    """Of a server without DP attention; `asked` has what it was given."""

    asked: list[ScheduleBatch | None] = field(default_factory=list)

    def maybe_prepare_mlp_sync_batch(
        self, batch: ScheduleBatch | None, need_sync: bool | None = None
    ) -> ScheduleBatch | None:
        self.asked.append(batch)
        return batch


@dataclass(eq=False)
class FutureMap:
    """Lengths by row; `published` has the rows of each publication."""

    new_seq_lens_buf: torch.Tensor = field(default_factory=lambda: torch.zeros(1000, dtype=torch.int64))
    published: list[list[int]] = field(default_factory=list)

    def publish(self, future_indices: torch.Tensor, new_seq_lens: torch.Tensor) -> None:
        self.new_seq_lens_buf[future_indices] = new_seq_lens
        self.published.append(future_indices.tolist())


@dataclass(eq=False)
class Scheduler:
    """`rpc` is the runtime, as on SGLang's."""

    page_size: int = 1
    max_total_num_tokens: int = 1024
    max_req_input_len: int = 1018
    max_new_tokens_limit: int | None = None
    device: str = "cpu"
    forward_ct: int = 0
    enable_overlap: bool = True
    forward_stream: Any = None
    future_map: FutureMap = field(default_factory=FutureMap)
    chunked_req: Req | None = None
    running_batch: ScheduleBatch = field(default_factory=ScheduleBatch)
    disagg_decode_prealloc_queue: object | None = None
    dp_attn_adapter: DPAttnAdapter = field(default_factory=DPAttnAdapter)
    waiting_queue: list[Req] = field(default_factory=list)
    result_queue: deque[Any] = field(default_factory=deque)
    req_to_token_pool: ReqToTokenPool = field(default_factory=ReqToTokenPool)
    token_to_kv_pool_allocator: Allocator = field(default_factory=Allocator)
    tree_cache: Tree = field(default_factory=Tree)
    draft_worker: DraftWorker | None = None
    model_config: ModelConfig = field(default_factory=ModelConfig)
    server_args: ServerArgs = field(default_factory=ServerArgs)
    tp_worker: TpModelWorker = field(default_factory=TpModelWorker)
    beam_coordinator: BeamCoordinator = field(default_factory=BeamCoordinator)
    metrics_collector: Any = None
    tokenizer: Any = None
    ipc_channels: IpcChannels = field(default_factory=IpcChannels)
    rpc: Any = None
    in_flight: list[ScheduleBatch | None] = field(default_factory=list)

    def _collect_inflight_batches(self) -> list[ScheduleBatch | None]:
        return self.in_flight

    def _release_aborted_request(self, req: Req) -> None:
        req.last_node = None
