"""The KV of a draft model, which lies in a pool of its own, in the slots of the model that it drafts for.

A compression moves it as the model's last scored layer moves. So a draft goes on with entries of the tokens that the
model goes on with. If it did not move, outputs would be the same, and fewer drafts would be accepted.
"""

from sglang_rpc.contract.layers import decoder_layers, window_of
from sglang_rpc.contract.sglang.memory import KVPool
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.errors import UnsupportedError
from sglang_rpc.types import KVLayer

#: Exactly this class: a subclass may store K/V in another layout.
POOL = "MHATokenToKVPool"


def draft_layers(scheduler: Scheduler) -> list[KVLayer]:
    """Where the KV of each layer of the draft model lies; nothing without one.

    Raises UnsupportedError if it lies where RPC cannot move it.
    """
    if scheduler.draft_worker is None:
        return []
    layers = []
    for runner in scheduler.draft_worker._draft_model_runners():
        pool: KVPool = runner.token_to_kv_pool
        found = decoder_layers(runner.model)
        if type(pool).__name__ != POOL or pool.kv_cache_layout != "nhd" or any(map(window_of, found)):
            raise UnsupportedError(
                f"a draft model with a KV pool of the class {type(pool).__name__}, or with sliding windows, does not "
                "work with RPC: a compression moves its KV, which has been checked for full attention alone; use "
                "another --speculative-draft-model-path, or start with --disable-rpc",
                "unsupported.draft_layers",
            )
        layers += [_layer(pool, layer.layer_id) for layer in found]
    return layers


def slots_for_drafts(scheduler: Scheduler) -> int:
    """Slots that a row has after its entries in each step, which SGLang takes in whole pages; none without drafts."""
    if scheduler.draft_worker is None:
        return 0
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_reserve_per_decode

    return int(get_alloc_reserve_per_decode())


def _layer(pool: KVPool, layer_id: int) -> KVLayer:
    index = layer_id - pool.start_layer
    return KVLayer(pool.k_buffer[index], pool.v_buffer[index], pool.dtype, scaling=1.0, draft=True)
