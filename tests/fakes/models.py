"""Models, their attention layers, and what runs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract import settings
from sglang_rpc.hooks.model import DraftRPC, ModelRPC
from tests.fakes.memory import Allocator, ReqToTokenPool


@dataclass(eq=False)
class ServerArgs:
    model_path: str = "a model"
    tokenizer_path: str | None = None
    skip_tokenizer_init: bool = False
    reasoning_parser: str | None = None
    device: str | None = "cuda"
    cuda_graph_config: Any = None
    disable_hybrid_swa_memory: bool = False
    max_running_requests: int | None = None
    enable_two_batch_overlap: bool = False
    disaggregation_mode: str = "null"
    disaggregation_decode_retraction_backup: str | None = None
    speculative_algorithm: str | None = None
    speculative_eagle_topk: int | None = None


def server_args(config: RPCConfig | None) -> ServerArgs:
    """The arguments of a server whose RPC is configured by `config`; None for off."""
    arguments = ServerArgs()
    settings.attach(arguments, config)
    return arguments


@dataclass(eq=False)
class ModelConfig:
    attention_arch: Any = field(default_factory=lambda: SimpleNamespace(name="MHA"))
    context_len: int = 10_000
    kv_heads: int = 1
    hf_config: Any = None
    is_encoder_decoder: bool = False
    is_generation: bool = True
    num_attention_heads: int | None = None
    use_ngram_embedding: bool = False
    head_dim: int = 1
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0

    def get_num_attention_heads(self, tensor_parallel_size: int) -> int:
        return (self.num_attention_heads or 1) // tensor_parallel_size

    def get_total_num_kv_heads(self) -> int:
        return self.kv_heads


@dataclass(eq=False)
class AttentionLayer:
    layer_id: int = 0
    tp_q_head_num: int = 1
    tp_k_head_num: int = 1
    qk_head_dim: int = 1
    scaling: float = 1.0
    attn_type: Any = None
    is_cross_attention: bool = False
    k_scale_float: float | None = None
    logit_cap: float | None = None
    logit_capping_method: str = "tanh"
    pos_encoding_mode: str = "NONE"
    sliding_window_size: int = -1
    use_irope: bool = False
    xai_temperature_len: int = -1


@dataclass(eq=False)
class SpecAuxConfig:
    draft_kv_num_layers: int | None = None
    draft_model_config: ModelConfig | None = None


@dataclass(eq=False)
class ModelRunner:
    """`rpc` is None where RPC is off, or before its query ring is built."""

    attn_backend: Any = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    is_draft_worker: bool = False
    model: Any = None
    model_config: ModelConfig = field(default_factory=ModelConfig)
    server_args: ServerArgs = field(default_factory=ServerArgs)
    req_to_token_pool: ReqToTokenPool = field(default_factory=ReqToTokenPool)
    token_to_kv_pool: Any = None
    token_to_kv_pool_allocator: Allocator = field(default_factory=Allocator)
    prefill_attention_backend_str: str = "torch_native"
    decode_attention_backend_str: str = "torch_native"
    use_mla_backend: bool = False
    sliding_window_size: int | None = None
    attention_chunk_size: int | None = None
    spec_aux_config: SpecAuxConfig = field(default_factory=SpecAuxConfig)
    rpc: ModelRPC | None = None
    rpc_draft: DraftRPC | None = None


@dataclass(eq=False)
class MemoryPoolConfig:
    max_total_num_tokens: int


@dataclass(eq=False)
class KVCacheConfigurator:
    server_args: ServerArgs
    device: str = "cuda"
    is_draft_worker: bool = False
    model: Any = None
    model_dtype: torch.dtype = torch.bfloat16
    token_bytes: int = 1000
    requests: int | None = None
    spec_aux_config: SpecAuxConfig = field(default_factory=SpecAuxConfig)

    def config_from_budget(self, budget_bytes: int) -> MemoryPoolConfig:
        return MemoryPoolConfig(budget_bytes // self.token_bytes)

    def resolve_max_num_reqs(self, token_capacity: int) -> int:
        return min(self.requests or 4096, token_capacity // 2)


@dataclass(eq=False)
class PrefillCudaGraphRunner:
    model_runner: ModelRunner


@dataclass(eq=False)
class LatentAttention:
    current_attention_backend: str
    kv_lora_rank: int = 1
    attn_mha: AttentionLayer = field(default_factory=AttentionLayer)
    attn_mqa: AttentionLayer = field(default_factory=AttentionLayer)


@dataclass(eq=False)
class GroupCoordinator:
    """Tensor-parallel ranks."""

    rank_in_group: int
    world_size: int
    cpu_group: Any = None

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("there are no other ranks")
