"""Memory: the KV pools, their allocators, the table of rows, and the tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from sglang_rpc.contract.sglang.requests import Req, ReqKvInfo, TreeNode
from sglang_rpc.contract.targets import assumed

_CACHE = "sglang.srt.mem_cache"


@assumed(
    f"{_CACHE}.memory_pool.MHATokenToKVPool",
    "one K and one V buffer a layer, by slot; the layout and scales that RPC refuses are named here",
)
class KVPool(Protocol):
    dtype: torch.dtype
    k_buffer: list[torch.Tensor]  #: [slots, KV heads, head size] a layer
    kv_cache_layout: str
    layer_num: int
    quant_method: object
    start_layer: int
    v_buffer: list[torch.Tensor]


@assumed(
    f"{_CACHE}.memory_pool.MLATokenToKVPool",
    "one latent a token and layer, in one buffer, the part that stands for the value first",
)
class LatentPool(Protocol):
    dtype: torch.dtype
    kv_buffer: list[torch.Tensor]  #: [slots, 1, kv_cache_dim] a layer
    kv_cache_dim: int
    kv_lora_rank: int
    layer_num: int
    start_layer: int


@assumed(
    f"{_CACHE}.memory_pool.HybridLinearKVPool",
    "of a model with recurrent layers, the pool of its attention layers, which have numbers of their own there",
)
class HybridPool(Protocol):
    full_attention_layer_id_mapping: Mapping[int, int]  #: layer id -> number in `full_kv_pool`
    full_kv_pool: KVPool


@assumed(f"{_CACHE}.allocator.base.BaseTokenToKVPoolAllocator", "the page size, and the pool that slots belong to")
class Allocator(Protocol):
    page_size: int  #: slots

    def get_kvcache(self) -> KVPool:
        """the pool that slots belong to"""  # or another kind: `layers.kv_pool` and `layers.is_latent` tell

    def available_size(self) -> int:
        """free slots"""

    def alloc(self, need_size: int) -> torch.Tensor | None:
        """that many slots, in whole pages, or None"""

    def free_segments(self, segments: Sequence[tuple[torch.Tensor, int]]) -> None:
        """frees slots of one row, each segment with its first row position, on a page boundary"""

    def evict_to_free_tokens(self, tree_cache: Tree, num_tokens: int) -> bool | None:
        """makes room in the tree before slots are taken"""

    def check_decode_capacity(
        self, *, num_tokens: int, tree_cache: Tree, requests: Sequence[Req], spec_algorithm: object
    ) -> bool:
        """whether the pool, with what the tree can give, has room for a decode step"""


@assumed(
    f"{_CACHE}.memory_pool.ReqToTokenPool",
    "the slot of each row position; row 0 is no request's, padded rows of a CUDA graph write there",
)
class ReqToTokenPool(Protocol):
    _aux_cache: object | None  #: memory beside the row, sized by its length; RPC refuses it
    req_to_token: torch.Tensor  #: int32 [rows, row positions]
    rpc: object  #: see `hooks.runtime.runtime_of`
    rpc_ring: object  #: the query ring, for the draft model of a server that speculates

    def available_size(self) -> int:
        """free rows"""

    def alloc(self, reqs: list[Req]) -> list[int] | None:
        """a row for a request, kept if it holds one"""

    def free(self, req: Req) -> None:
        """gives a request's row back"""

    def write(self, indices: tuple[int, slice], values: torch.Tensor) -> None:
        """sets row positions to slots"""


class StateAllocator(Protocol):
    """Of the slots that recurrent states have."""

    size: int  #: slots


@assumed(
    f"{_CACHE}.memory_pool.MambaPool.State",
    "recurrent states by layer and slot; a request's are all that its recurrent layers know of its text",
)
class StateBuffers(Protocol):
    conv: list[torch.Tensor]  #: [layers, slots, ...] each
    temporal: torch.Tensor  #: [layers, slots, ...]; empty, where layers are short convolutions


@assumed(f"{_CACHE}.memory_pool.MambaPool", "the recurrent states of the model's requests, and of the tree's texts")
class StatePool(Protocol):
    mamba_cache: StateBuffers


@assumed(
    f"{_CACHE}.memory_pool.HybridReqToTokenPool",
    "how many recurrent states there are, and how many requests they let run; a row and its state slots are taken "
    "together",
)
class HybridReqToTokenPool(Protocol):
    mamba_allocator: StateAllocator
    mamba_pool: StatePool
    size: int  #: rows

    def free_mamba_cache(self, req: Req) -> None:
        """gives a request's state slots back, its row still held"""


@assumed(f"{_CACHE}.base_prefix_cache.MatchResult", "what the tree has of a text")
class MatchResult(Protocol):
    last_device_node: TreeNode


@assumed(f"{_CACHE}.unified_radix_cache.UnifiedRadixCache", "what would make it more than a tree on this device")
class Tree(Protocol):
    cache_controller: object | None
    linker: object | None
    req_to_token_pool: ReqToTokenPool

    def evictable_size(self) -> int:
        """slots that nobody but the tree holds"""

    def supports_mamba(self) -> bool:
        """whether it holds recurrent states too, each at the end of the text that it was computed from"""

    def free_kv_row(self, kv: ReqKvInfo, ranges: list[tuple[int, int]]) -> None:
        """frees row positions [a, b), a on a page boundary, without waiting for the device"""

    def match_prefix(self, params: object) -> MatchResult:
        """the longest prefix of a text in whole pages; a node ends where it does"""

    def lock(self, node_id: TreeNode) -> object:
        """keeps what leads to a node from eviction, for one holder"""

    def unlock(self, lock: object) -> None:
        """takes a lock back"""

    def root_node_handle(self, extra_key: str | None = None) -> TreeNode:
        """the node of no text"""

    def prefix_device_indices(self, req: Req) -> torch.Tensor:
        """the slots of a matched prefix"""
