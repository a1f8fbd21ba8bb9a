"""The attention layers of SGLang's models, and where their KV lies."""

from collections.abc import Iterable, Sequence
from typing import TypeGuard, TypeVar, cast

import torch

from sglang_rpc.contract.sglang.memory import (
    Allocator,
    HybridPool,
    HybridReqToTokenPool,
    KVPool,
    LatentPool,
    ReqToTokenPool,
)
from sglang_rpc.contract.sglang.model import (
    AttentionLayer,
    HookableLayer,
    LatentAttention,
    ModelConfig,
    ModelRunner,
)
from sglang_rpc.contract.windows import has_own_windows, parts_of
from sglang_rpc.types import KVLayer

#: Exactly this class: in a subclass, slots may be known by other numbers.
HYBRID_POOL = "HybridLinearKVPool"

Layer = TypeVar("Layer", bound=AttentionLayer)


def decoder_layers(model: torch.nn.Module) -> list[HookableLayer]:
    """The attention layers whose KV is compressed, by layer id.

    Latent attention (MLA) has two a layer: `attn_mqa` reads the latents as they are stored, with queries absorbed into
    their space; `attn_mha`, a shortcut of prefills, expands them, and leaves nothing else behind.
    """
    from sglang.srt.layers.radix_attention import RadixAttention

    shortcuts = {id(attention.attn_mha) for attention in latent_attentions(model)}
    found = [m for m in model.modules() if isinstance(m, RadixAttention) and id(m) not in shortcuts]
    return sorted(found, key=lambda layer: layer.layer_id)


def window_of(layer: AttentionLayer) -> int:
    """Entries before its own that a token of a sliding-window layer sees; 0: all of them, full attention."""
    return max(0, layer.sliding_window_size)


def full_attention(layers: Iterable[Layer]) -> list[Layer]:
    """Those without a window: their queries are recorded, and their candidates are scored."""
    return [layer for layer in layers if not window_of(layer)]


def latent_attentions(model: torch.nn.Module) -> list[LatentAttention]:
    """The modules that choose, step by step, between `attn_mqa` and `attn_mha`."""
    found = [m for m in model.modules() if hasattr(m, "attn_mqa") and hasattr(m, "attn_mha")]
    return cast("list[LatentAttention]", found)


def hybrid_pool(allocator: Allocator) -> HybridPool | None:
    """The pool of a model with recurrent layers beside attention; None of another, or of a class that RPC does not
    know."""
    return hybrid_in(allocator.get_kvcache())


def hybrid_in(pool: KVPool) -> HybridPool | None:
    """`pool` as what `hybrid_pool` gives."""
    return cast("HybridPool", pool) if type(pool).__name__ == HYBRID_POOL else None


def kv_pool(allocator: Allocator) -> KVPool:
    """Where K and V of the attention layers lie; beside recurrent layers, a part of the model's pool."""
    hybrid = hybrid_pool(allocator)
    return allocator.get_kvcache() if hybrid is None else hybrid.full_kv_pool


def recurrent_states(allocator: Allocator, rows: ReqToTokenPool) -> tuple[torch.Tensor, ...]:
    """The recurrent states of all slots, [layers, slots, ...] each; none of a model without recurrent layers."""
    if hybrid_pool(allocator) is None:
        return ()
    states = cast("HybridReqToTokenPool", rows).mamba_pool.mamba_cache
    return tuple(buffer for buffer in (*states.conv, states.temporal) if buffer.numel())


def is_latent(pool: KVPool) -> TypeGuard[LatentPool]:
    """Whether a token's KV is one latent, which is key and value in one."""
    return hasattr(pool, "kv_lora_rank")


def pool_bytes(pool: KVPool) -> int:
    """Bytes of all K and V buffers on this rank."""
    if is_latent(pool):
        return sum(buffer.nbytes for buffer in pool.kv_buffer)
    return sum(buffer.nbytes for part in parts_of(pool) for buffer in (*part.k_buffer, *part.v_buffer))


def query_dim(config: ModelConfig) -> int:
    """Of each head's queries as they are scored, those of latent attention (MLA) absorbed. Needs no built model."""
    latent = config.attention_arch.name == "MLA"
    return config.kv_lora_rank + config.qk_rope_head_dim if latent else config.head_dim


def moved_layers(model_runner: ModelRunner, layers: Sequence[Layer]) -> list[Layer]:
    """Those of `layers` whose KV a compression moves: all but windows with a pool of their own."""
    own = has_own_windows(model_runner.token_to_kv_pool_allocator.get_kvcache())
    return full_attention(layers) if own else list(layers)


def kv_layer(model_runner: ModelRunner, layer: AttentionLayer) -> KVLayer:
    """Where this layer's KV lies in the pool, and how its logits are scaled."""
    # A draft shares the allocator, whose pool is that of the model it drafts for.
    own = model_runner.is_draft_worker
    pool = model_runner.token_to_kv_pool if own else model_runner.token_to_kv_pool_allocator.get_kvcache()
    hybrid = hybrid_in(pool)
    if hybrid is not None:
        index, pool = hybrid.full_attention_layer_id_mapping[layer.layer_id], hybrid.full_kv_pool
    elif has_own_windows(pool):
        index, in_window = pool.layers_mapping[layer.layer_id]
        assert not in_window, f"layer {layer.layer_id} has no window, and its KV is in the pool for windows"
        pool = pool.full_kv_pool
    else:
        index = layer.layer_id - pool.start_layer
    # Keys quantised to FP8 are stored divided by k_scale.
    k_scale = 1.0 if layer.k_scale_float is None else layer.k_scale_float
    if is_latent(pool):
        keys = pool.kv_buffer[index]
        values = keys[..., : pool.kv_lora_rank]
        if model_runner.decode_attention_backend_str != "triton":
            k_scale = 1.0  # the others store and read latents as they are
    else:
        keys, values = pool.k_buffer[index], pool.v_buffer[index]
    scaling = layer.scaling * k_scale
    return KVLayer(keys, values, pool.dtype, scaling, layer.logit_cap or 0.0, window=window_of(layer))
