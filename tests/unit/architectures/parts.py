"""What configurations of many architectures share."""

from __future__ import annotations

from typing import Any

LAYERS = 4

#: For architectures whose configuration class is neither in transformers nor in SGLang: their code reads these.
GENERIC: dict[str, Any] = dict(
    model_type="llama",
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=LAYERS,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    vocab_size=512,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    hidden_act="silu",
    layer_norm_eps=1e-5,
    layer_norm_epsilon=1e-5,
    tie_word_embeddings=False,
    use_qkv_bias=False,
    use_bias=False,
    qkv_bias=False,
    bias=False,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    num_shared_experts=1,
    n_routed_experts=4,
    n_shared_experts=1,
    num_local_experts=4,
    norm_topk_prob=True,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    embedding_multiplier=1.0,
)
YARN = dict(
    type="yarn",
    factor=1.0,
    original_max_position_embeddings=2048,
    beta_fast=32,
    beta_slow=1,
    mscale=1.0,
    mscale_all_dim=1.0,
)
LATENT = dict(q_lora_rank=64, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32)
EXPERTS = ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "first_k_dense_replace", "moe_layer_freq")
DEEPSEEK = {name: GENERIC[name] for name in (*EXPERTS, "topk_method", "n_group", "topk_group", "scoring_func")}
DEEPSEEK |= dict(rope_scaling=YARN, moe_intermediate_size=64, routed_scaling_factor=1.0)
INDEXER = dict(index_topk=64, index_n_heads=4, index_head_dim=32)
BAILING = dict(embedding_dropout=0.0, use_qk_norm=True, score_function=None)
ROPE = dict(rope_type="default", rope_theta=1e4)
LINEAR = dict(
    full_attention_interval=4, linear_num_value_heads_cpu=32, linear_num_key_heads_cpu=16, rope_parameters=ROPE
)
HALF_WINDOWS = dict(sliding_window=128, layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2))
FEW = dict(num_hidden_layers=LAYERS)
