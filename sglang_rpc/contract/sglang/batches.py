"""Batches: of the scheduler, and of a forward step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from sglang_rpc.contract.sglang.memory import Allocator, ReqToTokenPool, Tree
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.targets import SPECULATIVE, assumed


@assumed("sglang.srt.model_executor.forward_batch_info.ForwardMode", "what a step does with its rows")
class ForwardMode(Protocol):
    def is_decode(self) -> bool:
        """a step of one token a row"""

    def is_extend(self) -> bool:
        """a step that prefills, mixed with decode rows or not, or that verifies drafts"""

    def is_target_verify(self) -> bool:
        """a step in which each row verifies drafts"""

    def is_draft_extend_v2(self) -> bool:
        """a draft's step on what a verify accepted, and on what it did not: n rows of each request, accepted first"""

    def is_idle(self) -> bool:
        """a step without rows, of a rank whose peers have some"""


@assumed("sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo", "whether rows draw by seeds and lengths")
class SamplingInfo(Protocol):
    sampling_seed: torch.Tensor | None


@assumed("sglang.srt.managers.schedule_batch.ScheduleBatch", "rows and lengths of a batch")
class ScheduleBatch(Protocol):
    batch_is_full: bool  #: whether admission may be skipped
    chunked_req: Req | None  #: of an extend step: whose prefill went on after it
    extend_lens: list[int]  #: tokens that each row prefills in this step
    forward_mode: ForwardMode
    mamba_track_mask_cpu: list[bool] | None  #: of a decode step: whose recurrent state it copies
    mamba_track_mask_next_cpu: list[bool] | None  #: whose the next step would copy; None without overlap
    orig_seq_lens: torch.Tensor  #: int32 [rows], logical
    prefill_input_ids_cpu: torch.Tensor  #: int64: the ids that an extend step computes, all rows' together
    req_pool_indices: torch.Tensor  #: int64 [rows]
    req_to_token_pool: ReqToTokenPool
    reqs: list[Req]
    sampling_info: SamplingInfo
    seq_lens: torch.Tensor  #: int64 [rows], physical; of a server that speculates without the newest token
    seq_lens_cpu: torch.Tensor  #: the same, on the host
    seq_lens_sum: int | None
    spec_algorithm: object
    token_to_kv_pool_allocator: Allocator
    tree_cache: Tree

    def new_tokens_required_next_decode(self, selected_indices: Sequence[int] | None = None) -> int:
        """admission and retraction count from kv_committed_len, which compression shortens"""


@assumed(
    "sglang.srt.layers.attention.triton_backend.TritonMultiStepDraftBackend",
    "the attention of a draft's steps, for all of which metadata is made together",
    SPECULATIVE,
)
@assumed(
    "sglang.srt.layers.attention.flashinfer_backend.FlashInferMultiStepDraftBackend",
    "the attention of a draft's steps, for all of which metadata is made together",
    SPECULATIVE,
)
@assumed(
    "sglang.srt.layers.attention.flashinfer_mla_backend.FlashInferMLAMultiStepDraftBackend",
    "the attention of a draft's steps, for all of which metadata is made together",
    SPECULATIVE,
)
class DraftSteps(Protocol):
    req_to_token_pool: ReqToTokenPool


@assumed(
    "sglang.srt.model_executor.forward_batch_info.ForwardBatch",
    "rows, positions and lengths of a step: the static tensors of a CUDA graph, or this step's own",
)
class ForwardBatch(Protocol):
    _original_forward_mode: ForwardMode | None  #: what a step was before it was labelled as its peers' steps are
    extend_seq_lens: torch.Tensor  #: int32 [rows], of an extend step: `ScheduleBatch.extend_lens`
    forward_mode: ForwardMode
    mrope_positions: torch.Tensor | None  #: int64 [3, tokens]: what mrope reads; None without it
    orig_seq_lens: torch.Tensor  #: int32 [rows], logical
    out_cache_loc: torch.Tensor | None  #: slots that the step writes
    positions: torch.Tensor  #: int64 [tokens]
    req_pool_indices: torch.Tensor  #: rows
    rpc: object | None  #: see `hooks.step.single_rows`
    rpc_lengths: torch.Tensor | None  #: see `hooks.step.logical_lengths`
    rpc_where: tuple[torch.Tensor, torch.Tensor]  #: of a decode step: where its queries go in the query ring
    seq_lens: torch.Tensor  #: [rows], physical
    seq_lens_cpu: torch.Tensor
    tbo_children: list[ForwardBatch] | None  #: the halves of a step that overlap
