"""The server's arguments, the processes around the scheduler, and groups of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from sglang_rpc.contract.sglang.requests import GenerateReqInput
from sglang_rpc.contract.targets import TEXTS, assumed

_TOKENIZER_MANAGER = "sglang.srt.managers.tokenizer_manager"
_FIELDS = "sglang.srt.arg_groups.fields"


@assumed("sglang.srt.model_executor.cuda_graph_config.PhaseConfig", "whether a phase runs in CUDA graphs")
class PhaseConfig(Protocol):
    backend: str


@assumed("sglang.srt.model_executor.cuda_graph_config.CudaGraphConfig", "which phases run in CUDA graphs")
class CudaGraphConfig(Protocol):
    decode: PhaseConfig
    prefill: PhaseConfig


@assumed(f"{_FIELDS}.model.Model", "which model a trace is of")
class ModelArgs(Protocol):
    model_path: str


@assumed(f"{_FIELDS}.serving.Serving", "whose texts are tokens, and the reasoning parser's name")
class ServingArgs(Protocol):
    reasoning_parser: str | None
    skip_tokenizer_init: bool
    tokenizer_path: str | None


@assumed(f"{_FIELDS}.device.Device", "whether there are CUDA graphs to mind")
class DeviceArgs(Protocol):
    device: str | None


@assumed(f"{_FIELDS}.exec_.ExecGraph", "whether a policy's work would be lost in a CUDA graph")
class GraphArgs(Protocol):
    cuda_graph_config: CudaGraphConfig | None


@assumed(f"{_FIELDS}.exec_.ExecOverlap", "whether a step may run as two halves")
class OverlapArgs(Protocol):
    enable_two_batch_overlap: bool


@assumed(f"{_FIELDS}.parallel.Parallel", "the ranks that share the attention heads, and the pipeline's stages")
class ParallelArgs(Protocol):
    attn_dp_size: int
    attn_tp_size: int
    pp_rank: int  #: this rank's stage
    pp_size: int


@assumed(
    f"{_FIELDS}.schedule.Schedule",
    "whether layers with sliding windows share the KV pool with the others, and how many requests may run",
)
class ScheduleArgs(Protocol):
    disable_hybrid_swa_memory: bool
    max_running_requests: int | None


@assumed(f"{_FIELDS}.disagg.Disagg", "which half of the work a server does, and how retracted rows are backed up")
class DisaggregationArgs(Protocol):
    disaggregation_decode_retraction_backup: str | None
    disaggregation_mode: str


@assumed(f"{_FIELDS}.spec.Spec", "whether a server speculates, and how many rows a request verifies in a step")
class SpeculativeArgs(Protocol):
    speculative_algorithm: str | None
    speculative_eagle_topk: int | None


class ServerArgs(
    ModelArgs,
    ServingArgs,
    DeviceArgs,
    GraphArgs,
    ScheduleArgs,
    OverlapArgs,
    DisaggregationArgs,
    SpeculativeArgs,
    Protocol,
):
    """The server's arguments, which SGLang puts together from namespaces of fields.

    The refusals read others by the names of their flags, and refuse to start where one is missing.
    """


class Tokenizer(Protocol):
    """Transformers' own."""

    all_special_ids: list[int]
    is_fast: bool

    def get_added_vocab(self) -> dict[str, int]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(
        self, ids: Sequence[int], *, skip_special_tokens: bool = False, spaces_between_special_tokens: bool = True
    ) -> str: ...


@assumed(f"{_TOKENIZER_MANAGER}.ReqState", "a request's output so far, and the request as it came in", TEXTS)
class ReqState(Protocol):
    obj: GenerateReqInput
    output_ids: list[int]

    def get_text(self) -> str:
        """the output's text, as the client is shown it"""


@assumed("sglang.srt.managers.io_struct.BatchStrOutput", "which outputs have ended, and why", TEXTS)
class BatchOutput(Protocol):
    finished_reasons: list[dict[str, Any] | None]
    rids: list[str]


@assumed(f"{_TOKENIZER_MANAGER}.TokenizerManager", "the arguments that carry the configuration, and its tokenizer")
class TokenizerManager(Protocol):
    context_len: int  #: tokens that a prompt is cut to, where the server may
    rid_to_state: dict[str, ReqState]
    rpc_texts: Any  #: what `hooks.texts` knows
    server_args: ServerArgs
    tokenizer: Tokenizer | None

    async def _tokenize_texts(self, texts: str, is_cross_encoder: bool = False) -> tuple[list[int], list[int] | None]:
        """the ids of a prompt that is text"""


@assumed(
    "sglang.srt.entrypoints.engine.Engine",
    "how sglang_rpc.Engine attaches the configuration before the arguments are checked",
)
class Engine(Protocol):
    server_args_class: Callable[..., ServerArgs]


@assumed("sglang.srt.parser.reasoning_parser.BaseReasoningFormatDetector", "a model's think markers")
class ReasoningDetector(Protocol):
    think_end_token: str
    think_start_token: str


@assumed("sglang.srt.parser.reasoning_parser.ReasoningParser", "the detector of a parser's name")
class ReasoningParser(Protocol):
    detector: ReasoningDetector


@assumed("sglang.srt.distributed.parallel_state.GroupCoordinator", "its size, and which of its ranks this is")
class GroupCoordinator(Protocol):
    cpu_group: torch.distributed.ProcessGroup
    rank_in_group: int
    world_size: int

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        """sums scores over ranks, on the current stream, in place or not: the result is what it returns"""
