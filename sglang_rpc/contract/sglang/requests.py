"""Requests: as they came in, and as the scheduler holds them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import torch

from sglang_rpc.contract.targets import TEXTS, assumed

if TYPE_CHECKING:
    from sglang_rpc.runtime.known_texts import Prompt
    from sglang_rpc.runtime.request_state import RequestState

_BATCH = "sglang.srt.managers.schedule_batch"


@assumed("sglang.srt.sampling.sampling_params.SamplingParams", "how long a request may get, and its options for RPC")
class SamplingParams(Protocol):
    beam_width: int
    custom_params: Mapping[str, Any] | None  #: as the sender wrote them
    ignore_eos: bool
    max_new_tokens: int  #: tokens; None, of a request that names no number, until the scheduler has clipped it
    min_new_tokens: int


@assumed(
    f"{_BATCH}.ReqKvInfo",
    "what a request holds: its row, [0, cache_protected_len) owned by the tree, and how far its KV reaches",
)
class ReqKvInfo(Protocol):
    cache_inserted_len: int
    cache_protected_len: int
    holds_kv: bool
    kv_allocated_len: int  #: KV entries
    kv_committed_len: int  #: KV entries
    mamba_cow_src_index: torch.Tensor | None  #: a state of the tree that its next prefill will begin with
    mamba_needs_clear: bool  #: whether its next prefill will begin with an empty state
    mamba_pool_idx: torch.Tensor | None  #: int64 []: the slot of its recurrent state
    req_pool_idx: int | None  #: the row

    def mark_kv_released(self) -> None:
        """sets the allocated length to zero"""

    def get_evicted_seqlen(self, component_type: Enum) -> int:
        """the cursor: of row positions before it, the component's slots have been freed, but for the tree's"""

    def set_evicted_seqlen(self, component_type: Enum, length: int) -> None:
        """moves the cursor"""


class TreeNode(Protocol):
    """A node of the tree, which RPC only hands on."""


@assumed(f"{_BATCH}.BaseFinishReason", "why a request ended")
class FinishReason(Protocol):
    def to_json(self) -> dict[str, Any]:
        """why a request ended, as a trace has it"""


@assumed("sglang.srt.session.session_controller.Session", "whether the turns of a session share one row")
class Session(Protocol):
    streaming: bool


@assumed(f"{_BATCH}.Req", "a request's tokens and state; a plain class, so that it takes `rpc`")
class Req(Protocol):
    already_computed: int  #: tokens that count neither as cached nor as computed
    cache_salt: str | None  #: what keeps users' prompts apart in the tree
    custom_logit_processor: str | None
    extend_end: int  #: of the ids, where this step's prefill ends
    extend_len: int  #: tokens that this step prefills
    extra_key: str | None  #: what keeps prompts of equal ids apart in the tree
    finished_reason: FinishReason | None
    full_untruncated_fill_ids: array[int]  #: what is prefilled after `prefix_len`
    host_hit_length: int  #: tokens after `prefix_len` that the tree has in host memory, to be loaded at admission
    input_embeds: object | None
    is_retracted: bool
    kv: ReqKvInfo
    last_node: TreeNode  #: where the matched prefix ends
    lock: object  #: of the tree, up to there
    logprob_start_len: int
    lora_id: str | None
    mamba_host_hit_length: int  #: recurrent states that the tree has in host memory
    multimodal_inputs: object | None
    origin_input_ids: array[int]  #: the prompt
    output_ids: array[int]
    output_ids_through_stop: array[int]
    positional_embed_overrides: object | None
    prefix_len: int  #: tokens matched in the tree, or held by the row
    return_indexer_topk: bool
    return_logprob: bool
    return_routed_experts: bool
    rid: str
    rpc: RequestState | None
    sampling_params: SamplingParams
    spec_num_correct_drafts: int  #: drafts that were accepted, of a server that speculates
    spec_verify_ct: int  #: steps in which drafts were verified
    skip_radix_cache_insert: bool  #: whether what it holds is freed, not inserted in the tree
    session: Session | None
    swa_host_hit_length: int  #: tokens of window layers that the tree has in host memory
    to_finish: FinishReason | None
    vocab_size: int

    def finished(self) -> bool:
        """whether it has a reason to have ended"""

    def init_next_round_input(self, tree_cache: object = None, cow_mamba: bool | None = None) -> None:
        """matches the prompt before admission; may be called again"""

    def set_finish_with_abort(self, error_msg: str) -> None:
        """ends a request with a message, HTTP 400"""


@assumed("sglang.srt.managers.io_struct.GenerateReqInput", "a request as it came in")
class GenerateReqInput(Protocol):
    cache_salt: str | None
    custom_logit_processor: str | None
    extra_key: str | None
    input_embeds: object | None
    input_ids: list[int] | None
    logprob_start_len: int | list[int] | None
    lora_path: str | None
    positional_embed_overrides: object | None
    return_indexer_topk: bool
    return_logprob: bool | list[bool] | None
    return_routed_experts: bool
    rpc_prompt: Prompt
    rpc_text: str | None  #: what `input_ids` are of, where a chat was rendered
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None
    session_params: object | None
    text: str | list[str] | None

    def contains_mm_input(self) -> bool:
        """whether there is more than text"""


@assumed("sglang.srt.managers.io_struct.TokenizedGenerateReqInput", "a prompt's ids", TEXTS)
class TokenizedGenerateReqInput(Protocol):
    input_ids: array[int]


@assumed("sglang.srt.managers.io_struct.PauseGenerationReqInput", "whether a pause drops the KV: mode `retract`")
class PauseGenerationReqInput(Protocol):
    mode: str
