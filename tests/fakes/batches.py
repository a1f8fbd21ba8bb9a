"""Batches: of the scheduler, and of a forward step."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.fakes.memory import Allocator, ReqToTokenPool, Tree
from tests.fakes.requests import Req


def none() -> torch.Tensor:
    return torch.zeros(0, dtype=torch.int64)


class ForwardMode(enum.Enum):
    EXTEND = enum.auto()
    DECODE = enum.auto()
    TARGET_VERIFY = enum.auto()
    IDLE = enum.auto()
    DRAFT_EXTEND_V2 = enum.auto()

    def is_decode(self) -> bool:
        return self is ForwardMode.DECODE

    def is_extend(self) -> bool:
        return self in (ForwardMode.EXTEND, ForwardMode.TARGET_VERIFY)

    def is_target_verify(self) -> bool:
        return self is ForwardMode.TARGET_VERIFY

    def is_draft_extend_v2(self) -> bool:
        return self is ForwardMode.DRAFT_EXTEND_V2

    def is_idle(self) -> bool:
        return self is ForwardMode.IDLE


@dataclass(eq=False)
class SamplingInfo:
    sampling_seed: torch.Tensor | None = None


@dataclass(eq=False)
class ScheduleBatch:
    reqs: list[Req] = field(default_factory=list)
    forward_mode: ForwardMode = ForwardMode.DECODE
    extend_lens: list[int] = field(default_factory=list)
    seq_lens: torch.Tensor = field(default_factory=none)
    orig_seq_lens: torch.Tensor = field(default_factory=none)
    prefill_input_ids_cpu: torch.Tensor = field(default_factory=none)
    req_to_token_pool: ReqToTokenPool = field(default_factory=ReqToTokenPool)
    token_to_kv_pool_allocator: Allocator = field(default_factory=Allocator)
    tree_cache: Tree = field(default_factory=Tree)
    batch_is_full: bool = False
    mamba_track_mask_cpu: list[bool] | None = None
    mamba_track_mask_next_cpu: list[bool] | None = None
    chunked_req: Req | None = None
    spec_algorithm: Any = None
    req_pool_indices: torch.Tensor = field(default_factory=none)
    sampling_info: SamplingInfo = field(default_factory=SamplingInfo)

    @property
    def seq_lens_cpu(self) -> torch.Tensor:
        return self.seq_lens.cpu()

    @property
    def seq_lens_sum(self) -> int | None:
        return int(self.seq_lens.sum())

    def new_tokens_required_next_decode(self, selected_indices: Sequence[int] | None = None) -> int:
        """A new page per request, at most."""
        rows = self.reqs if selected_indices is None else selected_indices
        return len(rows) * self.token_to_kv_pool_allocator.page_size


@dataclass
class ForwardBatch:
    """A dataclass, which SGLang copies with `dataclasses.replace`."""

    forward_mode: ForwardMode
    req_pool_indices: torch.Tensor = field(default_factory=none)
    positions: torch.Tensor = field(default_factory=none)
    mrope_positions: torch.Tensor | None = None
    seq_lens: torch.Tensor = field(default_factory=none)
    orig_seq_lens: torch.Tensor = field(default_factory=none)
    extend_seq_lens: torch.Tensor = field(default_factory=none)
    out_cache_loc: torch.Tensor | None = None
    tbo_children: list[ForwardBatch] | None = None
    _original_forward_mode: ForwardMode | None = None

    @property
    def seq_lens_cpu(self) -> torch.Tensor:
        return self.seq_lens.cpu()
