"""Requests, as the scheduler holds them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from sglang_rpc.runtime.request_state import RequestState


def ids(tokens: Iterable[int] = ()) -> array[int]:
    """Token ids as SGLang stores them."""
    return array("q", tokens)


@dataclass(eq=False)
class SamplingParams:
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    ignore_eos: bool = False
    beam_width: int = 1
    custom_params: Mapping[str, Any] | None = None


@dataclass(eq=False)
class ReqKvInfo:
    req_pool_idx: int | None = None
    cache_inserted_len: int = 0
    cache_protected_len: int = 0
    kv_committed_len: int = 0
    kv_allocated_len: int = 0
    mamba_cow_src_index: torch.Tensor | None = None
    mamba_needs_clear: bool = False
    mamba_pool_idx: torch.Tensor | None = None
    cursors: dict[Any, int] = field(default_factory=dict)

    @property
    def holds_kv(self) -> bool:
        return self.req_pool_idx is not None

    def mark_kv_released(self) -> None:
        self.kv_allocated_len = 0

    def get_evicted_seqlen(self, component_type: Enum) -> int:
        return self.cursors.get(component_type, 0)

    def set_evicted_seqlen(self, component_type: Enum, length: int) -> None:
        self.cursors[component_type] = length


@dataclass(eq=False)
class Req:
    """A request; `finished_reason` ends it."""

    origin_input_ids: array[int] = field(default_factory=ids)
    output_ids: array[int] = field(default_factory=ids)
    rpc: RequestState | None = None
    kv: ReqKvInfo = field(default_factory=ReqKvInfo)
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    full_untruncated_fill_ids: array[int] = field(default_factory=ids)
    extend_end: int = 0
    extend_len: int = 0
    prefix_len: int = 0
    host_hit_length: int = 0
    mamba_host_hit_length: int = 0
    swa_host_hit_length: int = 0
    last_node: Any = None
    lock: Any = None
    is_retracted: bool = False
    session: Any = None
    skip_radix_cache_insert: bool = False
    spec_num_correct_drafts: int = 0
    spec_verify_ct: int = 0
    finished_reason: Any = None
    to_finish: Any = None
    rid: str = "rid"
    extra_key: str | None = None
    input_embeds: Any = None
    already_computed: int = 0
    cache_salt: str | None = None
    lora_id: str | None = None
    vocab_size: int = 1000
    custom_logit_processor: str | None = None
    multimodal_inputs: Any = None
    positional_embed_overrides: Any = None
    logprob_start_len: int = -1
    return_logprob: bool = False
    return_indexer_topk: bool = False
    return_routed_experts: bool = False

    @property
    def output_ids_through_stop(self) -> array[int]:
        return self.output_ids

    def finished(self) -> bool:
        return self.finished_reason is not None

    def init_next_round_input(self, tree_cache: Any = None, cow_mamba: bool | None = None) -> None:
        raise NotImplementedError("a test that matches uses SGLang's own request")

    def set_finish_with_abort(self, error_msg: str) -> None:
        self.to_finish = error_msg
