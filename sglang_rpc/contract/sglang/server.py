"""The server's arguments, the processes around the scheduler, and groups of ranks."""

from collections.abc import Callable
from typing import Protocol

import torch

from sglang_rpc.contract.targets import assumed

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


@assumed("sglang.srt.managers.tokenizer_manager.TokenizerManager", "the arguments that carry the configuration")
class TokenizerManager(Protocol):
    server_args: ServerArgs


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
