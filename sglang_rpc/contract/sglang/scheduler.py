"""The scheduler, and what it reports through."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.memory import Allocator, ReqToTokenPool, Tree
from sglang_rpc.contract.sglang.model import ModelConfig, ModelRunner
from sglang_rpc.contract.sglang.requests import Req, TreeNode
from sglang_rpc.contract.sglang.server import ServerArgs
from sglang_rpc.contract.targets import REUSE, SPECULATIVE, assumed

if TYPE_CHECKING:
    import torch
    from prometheus_client import Counter, Gauge

_MANAGERS = "sglang.srt.managers"


class Tokenizer(Protocol):
    """Transformers' own."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@assumed(f"{_MANAGERS}.tp_worker.TpModelWorker", "the way from a scheduler to its model")
class TpModelWorker(Protocol):
    model_runner: ModelRunner


@assumed("sglang.srt.speculative.base_spec_worker.BaseSpecWorker", "the way from a scheduler to its draft model")
class DraftWorker(Protocol):
    def _draft_model_runners(self) -> Sequence[ModelRunner]:
        """the runner of each draft model, whose KV pool is its own"""


@assumed(f"{_MANAGERS}.overlap_utils.FutureMap", "what a step leaves for the next, by row", SPECULATIVE)
class FutureMap(Protocol):
    new_seq_lens_buf: torch.Tensor  #: int64 [rows], physical lengths after the last step of each row

    def publish(self, future_indices: torch.Tensor, new_seq_lens: torch.Tensor) -> None:
        """sets lengths by row; the next launch, and its copy to the host, wait for what is on the stream by now"""


@assumed("sglang.srt.beam_search.coordinator.BeamCoordinator", "told of every request that ends while it waits")
class BeamCoordinator(Protocol):
    def retire_group(self, req: Req) -> None:
        """forgets the beams of a request that ends while it waits; of one without beams, nothing"""


@assumed(f"{_MANAGERS}.scheduler_components.output_sender.SenderWrapper", "sends to a process")
class Sender(Protocol):
    def send_output(self, output: object, recv_obj: Req) -> None:
        """answers a request that waits"""


@assumed(f"{_MANAGERS}.scheduler_components.ipc_channels.SchedulerIpcChannels", "the way to the tokenizer's process")
class IpcChannels(Protocol):
    send_to_tokenizer: Sender


@assumed(
    "sglang.srt.observability.metrics_collector.SchedulerMetricsCollector", "labels and classes of SGLang's own metrics"
)
class MetricsCollector(Protocol):
    _counter_cls: type[Counter] | None
    _gauge_cls: type[Gauge] | None
    labels: dict[str, str]


@assumed(
    "sglang.srt.managers.scheduler_components.dp_attn.SchedulerDPAttnAdapter",
    "how a rank without a step joins its peers",
)
class DPAttnAdapter(Protocol):
    def maybe_prepare_mlp_sync_batch(
        self, batch: ScheduleBatch | None, need_sync: bool | None = None
    ) -> ScheduleBatch | None:
        """with DP attention an idle batch for None; else what it is given"""


@assumed(
    f"{_MANAGERS}.scheduler.Scheduler", "pools, tree, streams, tokenizer, metrics, queues and limits of a scheduler"
)
class Scheduler(Protocol):
    beam_coordinator: BeamCoordinator
    chunked_req: Req | None  #: whose prefill goes on, in chunks
    device: str
    disagg_decode_prealloc_queue: object | None  #: of a decode server
    dp_attn_adapter: DPAttnAdapter
    draft_worker: DraftWorker | None  #: of a server that speculates
    enable_overlap: bool  #: whether steps are planned while the last one runs
    forward_ct: int  #: forward passes so far
    forward_stream: torch.cuda.Stream
    future_map: FutureMap
    ipc_channels: IpcChannels
    max_new_tokens_limit: int | None
    max_req_input_len: int  #: tokens
    max_total_num_tokens: int  #: slots of the pool
    metrics_collector: MetricsCollector | None
    model_config: ModelConfig
    page_size: int  #: slots
    req_to_token_pool: ReqToTokenPool
    rpc: object  #: see `hooks.runtime.runtime_of`
    running_batch: ScheduleBatch
    #: Batches and their results that are in flight; none without overlap, and one, or none, with it.
    result_queue: deque[tuple[ScheduleBatch, object]]
    server_args: ServerArgs
    token_to_kv_pool_allocator: Allocator
    tokenizer: Tokenizer | None
    tp_worker: TpModelWorker
    tree_cache: Tree
    waiting_queue: list[Req]

    def _collect_inflight_batches(self) -> list[ScheduleBatch | None]:
        """with a pipeline: of every micro-batch, what decodes and what was planned last"""

    def _release_aborted_request(self, req: Req) -> None:
        """drops the tree's state of a request that ends while it waits"""


@assumed(
    f"{_MANAGERS}.scheduler_components.internal_state.SchedulerInternalStateController", "the way to the scheduler"
)
class InternalStateController(Protocol):
    scheduler: Scheduler


@assumed(f"{_MANAGERS}.io_struct.GetInternalStateReqOutput", "the dict that /server_info shows")
class GetInternalStateReqOutput(Protocol):
    internal_state: dict[str, Any]


@assumed(
    f"{_MANAGERS}.scheduler_components.output_streamer._GenerationStreamAccumulator",
    "the next chunks of responses, request by request in lists of equal order",
    REUSE,
)
class StreamAccumulator(Protocol):
    output_reqs: list[Req]
    prompt_tokens: list[int]


@assumed(
    f"{_MANAGERS}.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor",
    "ends requests that have finished",
    REUSE,
)
class BatchResultProcessor(Protocol):
    tree_cache: Tree


@assumed(
    f"{_MANAGERS}.scheduler_components.output_streamer.SchedulerOutputStreamer",
    "SGLang's extension point for per-request output fields",
)
class OutputStreamer(Protocol):
    has_additional_customized_info: bool

    def build_additional_customized_info(self, reqs: list[Req]) -> dict[str, Sequence[object]]:
        """one value per request"""


@assumed("sglang.srt.mem_cache.prefill_budget.PrefillBudget", "the slots that admission has promised")
class PrefillBudget(Protocol):
    total_offset: int


@assumed(
    f"{_MANAGERS}.schedule_policy.PrefillAdder",
    "the requests it has admitted, the slots it has promised them, and what it starts from",
)
class PrefillAdder(Protocol):
    can_run_list: list[Req]
    memory_budget: PrefillBudget
    new_chunked_req: Req | None
    new_token_ratio: float
    page_size: int  #: slots
    per_req_token_overhead: int
    rem_total_tokens: int
    running_batch: ScheduleBatch | None

    def add_one_req(self, req: Req, has_chunked_req: bool, truncation_align_size: int | None) -> Enum:
        """reads max_new_tokens and ignore_eos at once, and books what it admits at the end of can_run_list"""

    def add_chunked_req(self, req: Req) -> Req | None:
        """books a chunk, with the new tokens only if it is the last"""

    def ceil_paged_tokens(self, tokens: int) -> int:
        """whole pages"""

    def preempt_to_schedule(self, req: Req) -> bool:
        """changes total_offset only by the offsets of those it preempts"""

    def _get_running_request_total_token_offset(self, req: Req) -> float:
        """what a running request is promised; the adder's constructor and preemption sum it up"""

    def _lock_node(self, last_node: TreeNode) -> AbstractContextManager[object]:
        """pins a matched prefix while slots are taken for what follows it"""

    def _select_prefill_admission(self, req: Req, *, total_tokens: int, **kwargs: object) -> object:
        """decides by total_tokens: those to prefill, those to come, a page"""
