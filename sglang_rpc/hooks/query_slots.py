"""How many query slots there are, and the memory that RPC takes out of the KV pool's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sglang_rpc.backends.base import SCRATCH_BYTES
from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.layers import decoder_layers, pool_bytes
from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.targets import AFTER, hook
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy import lightthinker
from sglang_rpc.policy.resolve import accumulates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sglang_rpc.contract.sglang.model import AttentionLayer, KVCacheConfigurator, ModelRunner

#: On a CPU the pool is small and memory is not the point: enough slots that no test run waits for one.
CPU_SLOTS = 64
#: Elsewhere the ring takes at most this share of the KV pool's bytes.
POOL_SHARE = 0.01


@hook(
    AFTER,
    "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._profile_available_bytes",
    "the query ring's memory comes out of the KV pool's, not on top of it",
)
def leave_room(available: int, configurator: KVCacheConfigurator, *_args: object, **_kwargs: object) -> int | None:
    """AFTER KVCacheConfigurator._profile_available_bytes: bytes for the KV pool, less what RPC takes on a GPU.

    Runs once per model runner, after the weights are loaded and before the pool is built.
    """
    config = config_of(configurator.server_args)
    on_cpu = str(configurator.device).startswith("cpu")
    if config is None or configurator.is_draft_worker or on_cpu:
        return None
    ring = int(POOL_SHARE * available)
    if config.query_slots is not None:
        shape = ring_shape(config, decoder_layers(configurator.model), configurator.model_dtype)
        ring = (config.query_slots + 1) * QueryRing.slot_bytes(**shape)
    available -= ring + SCRATCH_BYTES
    if accumulates(config.policy):
        # 4 bytes beside each KV head's key and value, which are at least a head dim of bytes each.
        available -= available * 4 // (4 + 2 * decoder_layers(configurator.model)[0].qk_head_dim)
    return available


def ring_shape(config: RPCConfig, layers: Sequence[AttentionLayer], dtype: torch.dtype) -> dict[str, Any]:
    """The query ring's arguments that decide the size of a slot."""
    heads, head_dim = layers[0].tp_q_head_num, layers[0].qk_head_dim
    return dict(layers=len(layers), window=config.window, heads=heads, head_dim=head_dim, dtype=dtype)


def count_slots(config: RPCConfig, model_runner: ModelRunner, rows: int, slot_bytes: int) -> int:
    """Query slots of a server whose request table has `rows`."""
    if config.policy == lightthinker.NAME:
        return 1  # nobody takes it
    if config.query_slots is not None:
        return min(config.query_slots, rows)
    if str(model_runner.device).startswith("cpu"):
        return min(CPU_SLOTS, rows)
    pool = model_runner.token_to_kv_pool_allocator.get_kvcache()
    # One more is the dummy slot.
    return max(1, min(rows, int(POOL_SHARE * pool_bytes(pool)) // slot_bytes - 1))
