"""What is known of the model and its pools once they are built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sglang_rpc.contract.layers import decoder_layers, is_latent, latent_attentions
from sglang_rpc.contract.refusals.wording import OFF
from sglang_rpc.errors import IncompatibleSGLangError

#: Whose choice between absorbed and expanded latents RPC knows.
DEEPSEEK = "sglang.srt.models.deepseek_v2.DeepseekV2AttentionMLA"


@dataclass(frozen=True)
class ServingFacts:
    """What is known once the model and its pools are built. Counts are layers unless named otherwise.

    The defaults describe a plain model, such as a Qwen2 or Llama on one GPU.
    """

    model: str = "LlamaForCausalLM"  #: architecture
    generates: bool = True  #: False: an embedding, reward or classification model
    encoder_decoder: bool = False
    latent_attention: bool = False  #: MLA, and DSA which builds on it: one latent a token for all heads
    recurrent_state: bool = False  #: Mamba, linear attention, short convolutions
    ngram_embedding: bool = False
    mrope: bool = False  #: rope positions of time, height and width
    decoder_layers: int = 1  #: attention layers whose KV could be compressed
    other_attention: int = 0  #: encoder-only, bidirectional or cross attention
    window_layers: int = 0  #: sliding-window or chunked-local attention
    distance_layers: int = 0  #: attention that depends on the distance to a key (xAI temperature, ALiBi)
    capped_oddly: int = 0  #: attention logits capped otherwise than by tanh, which the scorer applies itself
    shared_kv: int = 0  #: layers that use another layer's KV
    own_dispatch: int = 0  #: of latent attention, layers that choose otherwise than DeepSeek's when to expand latents
    head_shapes: int = 1  #: distinct (query heads, KV heads, head size) among the decoder layers
    total_kv_heads: int = 1  #: of the model, not of this rank
    tp_size: int = 1  #: ranks that share the attention heads
    page_size: int = 1  #: slots
    decode_backend: str = "torch_native"
    prefill_backend: str = "torch_native"
    rocm: bool = False
    kv_pool: str = "MHATokenToKVPool"
    kv_layout: str = "nhd"
    kv_dtype: str = "bfloat16"  #: what an entry means, not the type of the bytes that store it
    kv_quantization: str = "unquantized"
    pool_layers: int = 1  #: layers the KV pool has buffers for
    row_pool: str = "ReqToTokenPool"
    rows_own_more: bool = False  #: a row has auxiliary memory sized by its length
    allocator: str = "TokenToKVPoolAllocator"
    tree: str | None = None  #: None: not built yet
    second_tier: bool = False  #: the tree is attached to host memory or an external store


def gather_facts(owner: Any) -> ServingFacts:
    """The facts of a live Scheduler, or of a ModelRunner with its pools (the tree's are then unknown).

    Raises:
        IncompatibleSGLangError: this SGLang keeps one of them elsewhere.
    """
    try:
        return _gather(owner)
    except AttributeError as error:
        raise IncompatibleSGLangError(
            f"RPC could not read what it must check before it serves ({error}); install sglang==0.5.23, or {OFF}"
        ) from error


def _gather(owner: Any) -> ServingFacts:
    from sglang.srt.mem_cache.kv_cache_builder import uses_ssm_state
    from sglang.srt.runtime_context import get_parallel

    scheduler = owner if hasattr(owner, "tp_worker") else None
    runner = owner if scheduler is None else scheduler.tp_worker.model_runner
    model_config = runner.model_config
    pool = runner.token_to_kv_pool_allocator.get_kvcache()
    rows = runner.req_to_token_pool
    quantization = getattr(pool, "quant_method", None)
    tree = None if scheduler is None else scheduler.tree_cache
    return ServingFacts(
        model=(model_config.hf_config.architectures or ["unknown"])[0],
        generates=model_config.is_generation,
        encoder_decoder=model_config.is_encoder_decoder,
        latent_attention=runner.use_mla_backend,
        recurrent_state=uses_ssm_state(model_config),
        ngram_embedding=model_config.use_ngram_embedding,
        mrope=model_config.model_is_mrope,
        **_layer_facts(runner.model, pool),
        total_kv_heads=model_config.get_total_num_kv_heads(),
        tp_size=get_parallel().attn_tp_size,
        page_size=runner.token_to_kv_pool_allocator.page_size,
        decode_backend=runner.decode_attention_backend_str,
        prefill_backend=runner.prefill_attention_backend_str,
        rocm=torch.version.hip is not None,
        kv_pool=type(pool).__name__,
        kv_layout="nhd" if is_latent(pool) else getattr(pool, "kv_cache_layout", "unknown"),
        kv_dtype=str(pool.dtype).removeprefix("torch."),
        kv_quantization="unquantized" if quantization is None else quantization.name,
        pool_layers=pool.layer_num,
        row_pool=type(rows).__name__,
        rows_own_more=rows._aux_cache is not None,
        allocator=type(runner.token_to_kv_pool_allocator).__name__,
        tree=None if tree is None else type(tree).__name__,
        second_tier=tree is not None
        and (tree.cache_controller is not None or getattr(tree, "linker", None) is not None),
    )


def _layer_facts(model: Any, pool: Any) -> dict[str, int]:
    """Counts over the attention layers that RPC can find in the model."""
    from sglang.srt.layers.radix_attention import AttentionType

    found = decoder_layers(model)
    decoder = [m for m in found if m.attn_type == AttentionType.DECODER and not m.is_cross_attention]
    others = len(found) - len(decoder)
    if is_latent(pool):  # those that read latents as they are stored
        decoder = [m for m in decoder if (m.tp_k_head_num, m.qk_head_dim) == (1, pool.kv_cache_dim)]
    return dict(
        decoder_layers=len(decoder),
        other_attention=others,
        # use_irope: Llama 4's chunked-local attention, which has no window size.
        window_layers=sum(m.sliding_window_size > 0 or m.use_irope for m in decoder),
        distance_layers=sum(m.xai_temperature_len > 0 or m.pos_encoding_mode != "NONE" for m in decoder),
        capped_oddly=sum(bool(m.logit_cap) and m.logit_capping_method != "tanh" for m in decoder),
        shared_kv=len(decoder) - len({m.layer_id for m in decoder}),
        own_dispatch=sum(_dispatcher(m) != DEEPSEEK for m in latent_attentions(model)),
        head_shapes=len({(m.tp_q_head_num, m.tp_k_head_num, m.qk_head_dim) for m in decoder}),
    )


def _dispatcher(attention: Any) -> str:
    """The class whose `dispatch_attn_forward_method` this module uses."""
    for cls in type(attention).__mro__:
        if "dispatch_attn_forward_method" in vars(cls):
            return f"{cls.__module__}.{cls.__qualname__}"
    return ""
