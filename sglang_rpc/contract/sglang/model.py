"""The model, its attention layers, and what runs it."""

from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

import torch

from sglang_rpc.contract.sglang.memory import Allocator, KVPool, ReqToTokenPool
from sglang_rpc.contract.sglang.server import ServerArgs
from sglang_rpc.contract.targets import LATENT, assumed


@assumed("sglang.srt.configs.model_config.ModelConfig", "what the model is, for the refusals, and how long it reads")
class ModelConfig(Protocol):
    attention_arch: Enum  #: MLA: latent attention
    context_len: int  #: tokens
    head_dim: int
    hf_config: Any  #: Transformers', of this model's own class
    is_encoder_decoder: bool
    is_generation: bool
    kv_lora_rank: int  #: of latent attention alone
    num_attention_heads: int | None  #: of the model, not of this rank
    qk_rope_head_dim: int  #: of latent attention alone
    use_ngram_embedding: bool

    def get_num_attention_heads(self, tensor_parallel_size: int) -> int:
        """of the model on each of so many ranks"""

    def get_total_num_kv_heads(self) -> int:
        """of the model, not of this rank"""


@assumed(
    "sglang.srt.layers.radix_attention.RadixAttention",
    "an attention layer's shape and scale, and what makes it one that RPC refuses",
)
class AttentionLayer(Protocol):
    attn_type: Enum
    is_cross_attention: bool
    k_scale_float: float | None
    layer_id: int
    logit_cap: float | None
    logit_capping_method: str
    pos_encoding_mode: str
    qk_head_dim: int
    scaling: float
    sliding_window_size: int
    tp_k_head_num: int
    tp_q_head_num: int
    use_irope: bool
    xai_temperature_len: int


@assumed(
    "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state.SpecAuxHiddenStateConfig",
    "what the draft model is, before it has a KV pool",
)
class SpecAuxConfig(Protocol):
    draft_kv_num_layers: int | None
    draft_model_config: ModelConfig | None  #: None of a server that does not speculate


class HookableLayer(AttentionLayer, Protocol):
    """An attention layer as the torch module that it is."""

    def register_forward_pre_hook(self, hook: Callable[..., None], *, with_kwargs: bool) -> object: ...

    def register_forward_hook(self, hook: Callable[..., None], *, with_kwargs: bool) -> object: ...


@assumed(
    "sglang.srt.layers.attention.hybrid_linear_attn_backend.MambaAttnBackendBase",
    "whether a verify leaves it to the next to bring recurrent states up to date",
)
class RecurrentBackend(Protocol):
    accept_lens_pool: (
        torch.Tensor | None
    )  #: tokens that the last verify accepted, by state slot; None: it is done there


@assumed(
    "sglang.srt.layers.attention.hybrid_linear_attn_backend.HybridLinearAttnBackend",
    "the backends of a model with recurrent layers beside attention",
)
class HybridBackend(Protocol):
    linear_attn_backend: RecurrentBackend


@assumed("sglang.srt.model_executor.model_runner.ModelRunner", "the model, its pools and what serves it")
class ModelRunner(Protocol):
    attention_chunk_size: int | None
    attn_backend: object  #: of a model with recurrent layers, a HybridBackend
    decode_attention_backend_str: str
    device: str
    dtype: torch.dtype
    is_draft_worker: bool
    model: torch.nn.Module
    model_config: ModelConfig
    prefill_attention_backend_str: str
    req_to_token_pool: ReqToTokenPool
    rpc: object  #: see `hooks.model.model_rpc`
    rpc_draft: object  #: see `hooks.model.draft_rpc`
    server_args: ServerArgs
    sliding_window_size: int | None
    spec_aux_config: SpecAuxConfig
    token_to_kv_pool: KVPool  #: of a draft model, its own; the allocator's is the other model's
    token_to_kv_pool_allocator: Allocator
    use_mla_backend: bool


@assumed("sglang.srt.model_executor.pool_configurator.MemoryPoolConfig", "how many tokens the KV pool will hold")
class MemoryPoolConfig(Protocol):
    max_total_num_tokens: int


@assumed("sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator", "what the KV pool is sized for")
class KVCacheConfigurator(Protocol):
    device: str
    is_draft_worker: bool
    model: torch.nn.Module
    model_dtype: torch.dtype
    server_args: ServerArgs
    spec_aux_config: SpecAuxConfig

    def config_from_budget(self, budget_bytes: int) -> MemoryPoolConfig:
        """what so many bytes hold, within --max-total-tokens; changes nothing"""

    def resolve_max_num_reqs(self, token_capacity: int) -> int:
        """how many requests run at most, with a pool of so many tokens; changes nothing"""


@assumed(
    "sglang.srt.model_executor.runner.prefill_cuda_graph_runner.PrefillCudaGraphRunner", "which model its graphs are of"
)
class PrefillCudaGraphRunner(Protocol):
    model_runner: ModelRunner


@assumed(
    "sglang.srt.models.deepseek_v2.DeepseekV2AttentionMLA",
    "its two attention layers: of latents as they are stored, and of expanded ones; how wide a latent is, and what "
    "attends",
    LATENT,
)
class LatentAttention(Protocol):
    attn_mha: AttentionLayer
    attn_mqa: AttentionLayer
    current_attention_backend: str
    kv_lora_rank: int
