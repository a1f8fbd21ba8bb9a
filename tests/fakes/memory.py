"""Memory: the KV pools, their allocators, the table of rows, and the tree. They count slots, and hand out none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.fakes.requests import Req, ReqKvInfo


@dataclass(eq=False)
class KVPool:
    """K and V buffers per layer: [slots, KV heads, head size]."""

    k_buffer: list[torch.Tensor] = field(default_factory=list)
    v_buffer: list[torch.Tensor] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    start_layer: int = 0
    kv_cache_layout: str = "layer_first"
    quant_method: Any = None

    @property
    def layer_num(self) -> int:
        return len(self.k_buffer)


@dataclass(eq=False)
class HybridPool:
    """Of a model with recurrent layers. RPC knows SGLang's class by its name, as a test's subclass has it."""

    full_kv_pool: KVPool = field(default_factory=KVPool)
    full_attention_layer_id_mapping: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class Allocator:
    """`free` counts the pool's free slots, or says how to count them."""

    free: int | Callable[[], int] = 0
    page_size: int = 1
    kvcache: Any = None

    def get_kvcache(self) -> Any:
        return self.kvcache

    def available_size(self) -> int:
        return self.free() if callable(self.free) else self.free

    def alloc(self, need_size: int) -> torch.Tensor | None:
        raise NotImplementedError("a test that takes slots uses SGLang's own allocator")

    def free_segments(self, segments: Sequence[tuple[torch.Tensor, int]]) -> None:
        raise NotImplementedError("a test that frees slots uses SGLang's own allocator")

    def evict_to_free_tokens(self, tree_cache: Tree, num_tokens: int) -> bool | None:
        raise NotImplementedError("a test that takes slots uses SGLang's own allocator")

    def check_decode_capacity(
        self, *, num_tokens: int, tree_cache: Tree, requests: Sequence[Req], spec_algorithm: Any
    ) -> bool:
        return num_tokens <= self.available_size() + tree_cache.evictable_size()


@dataclass(eq=False)
class ReqToTokenPool:
    """The table of rows; `rpc` is the runtime, as on SGLang's."""

    req_to_token: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int32))
    rpc: Any = None
    rpc_ring: Any = None
    _aux_cache: Any = None

    def available_size(self) -> int:
        return self.req_to_token.shape[0]

    def alloc(self, reqs: list[Req]) -> list[int] | None:
        raise NotImplementedError("a test that takes rows uses SGLang's own pool")

    def free(self, req: Req) -> None:
        req.kv.req_pool_idx = None

    def write(self, indices: Any, values: torch.Tensor) -> None:
        self.req_to_token[indices] = values


@dataclass(eq=False)
class Tree:
    """A tree that holds no prefix of anybody's."""

    evictable: int = 0
    cache_controller: Any = None
    linker: Any = None
    states: bool = False
    req_to_token_pool: Any = None

    def evictable_size(self) -> int:
        return self.evictable

    def supports_mamba(self) -> bool:
        return self.states

    def free_kv_row(self, kv: ReqKvInfo, ranges: list[tuple[int, int]]) -> None:
        raise NotImplementedError("a test that frees slots uses SGLang's own tree")

    def match_prefix(self, params: Any) -> Any:
        raise NotImplementedError("a test that matches uses SGLang's own tree")

    def lock(self, node_id: Any) -> Any:
        raise NotImplementedError("a test that locks uses SGLang's own tree")

    def unlock(self, lock: Any) -> None:
        raise NotImplementedError("a test that locks uses SGLang's own tree")

    def root_node_handle(self, extra_key: str | None = None) -> Any:
        raise NotImplementedError("a test that locks uses SGLang's own tree")

    def prefix_device_indices(self, req: Req) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.int64)


@dataclass(eq=False)
class StateAllocator:
    size: int = 0


@dataclass(eq=False)
class StateBuffers:
    conv: list[torch.Tensor] = field(default_factory=list)
    temporal: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(eq=False)
class StatePool:
    mamba_cache: StateBuffers = field(default_factory=StateBuffers)


@dataclass(eq=False)
class HybridReqToTokenPool:
    size: int = 0
    mamba_allocator: StateAllocator = field(default_factory=StateAllocator)
    mamba_pool: StatePool = field(default_factory=StatePool)

    def free_mamba_cache(self, req: Req) -> None:
        req.kv.mamba_pool_idx = None
