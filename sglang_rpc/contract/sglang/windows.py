"""SGLang's KV pool for sliding windows, its allocator, and what reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from sglang_rpc.contract.sglang.memory import KVPool
from sglang_rpc.contract.targets import assumed

_CACHE = "sglang.srt.mem_cache"


@assumed(f"{_CACHE}.swa_memory_pool.SWAKVPool", "a pool for layers with full attention, and one for window layers")
class WindowKVPool(Protocol):
    full_kv_pool: KVPool
    full_to_swa_index_mapping: torch.Tensor  #: int64 [slots + a page + 1]: window layers' slot of each other; 0: none
    layer_num: int  #: of both
    layers_mapping: Mapping[int, tuple[int, bool]]  #: by layer id: its index in its pool, and whether it has a window
    swa_kv_pool: KVPool

    def translate_loc_from_full_to_swa(self, kv_indices: torch.Tensor) -> torch.Tensor:
        """the window layers' slots of these slots; 0 where there is none"""


@assumed(
    f"{_CACHE}.allocator.swa.SWATokenToKVPoolAllocator",
    "slots of both pools, taken in step: a page of one has its tokens in the order of a page of the other",
)
class WindowAllocator(Protocol):
    _swa_req_ring: bool  #: window layers have a ring per request instead of slots

    def full_available_size(self) -> int:
        """free slots of layers with full attention"""

    def get_kvcache(self) -> WindowKVPool:
        """both pools"""

    def free_swa_segment(self, free_index: torch.Tensor, *, start_pos: int) -> None:
        """frees the window layers' slots of a row's part, in whole pages, and maps to 0; none may be mapped to 0"""

    def free_full_segment(self, free_index: torch.Tensor, *, start_pos: int) -> None:
        """frees the other layers' slots of a row's part, in whole pages, all of which are mapped to 0"""


@assumed(f"{_CACHE}.prefill_budget.SWAPrefillBudget", "the slots of window layers that admission has promised")
class WindowBudget(Protocol):
    swa_offset: int

    def swa_tokens(self, extend_input_len: int, max_new_tokens: int) -> int:
        """slots of window layers that a request takes at most; of the tokens to come no more than a window count"""


@assumed(
    "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend",
    "whether window layers have a pool of their own",
)
class TorchNativeBackend(Protocol):
    token_to_kv_pool: WindowKVPool
    use_sliding_window_kv_pool: bool
