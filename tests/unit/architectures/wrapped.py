"""Small configurations of models that have a language model inside, with images or sound beside it, and of others whose
configuration is written out whole."""

from __future__ import annotations

from typing import Any

from tests.unit.architectures.parts import (
    DEEPSEEK,
    FEW,
    GENERIC,
    HALF_WINDOWS,
    LATENT,
    LAYERS,
    LINEAR,
    ROPE,
)  # fmt: skip

#: Architectures of which the class has sizes of its own, and few layers are enough.
_TEXT_INSIDE = """
    Cosmos3EdgeForConditionalGeneration cosmos3_edge, EmbeddingGemma2Model embedding_gemma2,
    Gemma4UnifiedForConditionalGeneration gemma4_unified,
    GlmAsrForConditionalGeneration glmasr, Lfm2VlForConditionalGeneration lfm2_vl,
    LocateAnythingForConditionalGeneration locateanything, Mistral3ForConditionalGeneration mistral3,
    MllamaForConditionalGeneration mllama, MuseSparkForConditionalGeneration muse_spark,
    Qwen2AudioForConditionalGeneration qwen2_audio, VoxtralForConditionalGeneration voxtral
"""
#: SGLang reads transformers' own model, or one of the LLaMA kind.
_GENERIC_NAMES = """
    Sarashina2VisionForCausalLM TransformersEmbeddingModel TransformersForCausalLM TransformersForSequenceClassification
    TransformersMoEEmbeddingModel TransformersMoEForCausalLM TransformersMoEForSequenceClassification
    TransformersMultiModalEmbeddingModel TransformersMultiModalForCausalLM
    TransformersMultiModalForSequenceClassification TransformersMultiModalMoEEmbeddingModel
    TransformersMultiModalMoEForCausalLM TransformersMultiModalMoEForSequenceClassification
"""
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_LANGUAGE = {name: GENERIC[name] for name in (*_SIZES, "vocab_size", "head_dim")}
_QWEN2 = _LANGUAGE | dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"])
_QWEN3 = _LANGUAGE | dict(model_type="qwen3", architectures=["Qwen3ForCausalLM"])
_EYES = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
)
_NVILA = dict(model_type="llava", text_config=_QWEN2, vision_config=dict(_EYES, model_type="siglip_vision_model"))
_SEEING = dict(vision_config=dict(deepstack_visual_indexes=[], depth=1), text_config=FEW | LINEAR)
_DEEPSEEK2 = FEW | DEEPSEEK | dict(architectures=["DeepseekV2ForCausalLM"], vocab_size=512, intermediate_size=512)
_OCR = dict(model_type="deepseek_vl_v2", tile_tag="2D", global_view_pos="head")
_WITHOUT_LATENT = dict(
    use_mla=False, q_lora_rank=None, kv_lora_rank=None, qk_nope_head_dim=0, qk_rope_head_dim=0, v_head_dim=0
)
_JET = GENERIC | dict(
    model_type="jet_nemotron",
    layer_types=["jet", "attn"] * (LAYERS // 2),
    efficient_attention_config=dict(
        jet=dict(
            mode="chunk",
            num_heads=4,
            head_dim=32,
            expand_v=2.0,
            conv_size=4,
            dconv_generator_reduction=8,
            dconv_implementation="triton",
            norm_eps=1e-5,
        ),
        swa=dict(window_size=64),
    ),
)
#: Layers with windows have sizes of their own.
MIMO = GENERIC | dict(
    hybrid_layer_pattern=[0, 1] * (LAYERS // 2),
    sliding_window=128,
    sliding_window_size=128,
    swa_num_attention_heads=8,
    swa_num_key_value_heads=4,
    swa_head_dim=32,
    swa_v_head_dim=32,
    v_head_dim=32,
    swa_rope_theta=1e4,
    add_full_attention_sink_bias=False,
    add_swa_attention_sink_bias=False,
    attention_value_scale=1.0,
    attention_bias=False,
    layernorm_epsilon=1e-5,
    partial_rotary_factor=1.0,
    moe_layer_freq=[0, 1, 1, 1],
    n_shared_experts=None,
    rope_scaling=None,
    rope_parameters=ROPE,
)
MINIMAX = GENERIC | dict(
    moe_layer_freq=[0] * LAYERS,
    dense_intermediate_size=512,
    shared_intermediate_size=64,
    swiglu_alpha=1.7,
    swiglu_limit=7.0,
    use_gemma_norm=False,
    use_qk_norm=True,
    sparse_attention_config=None,
    rotary_dim=16,
)
_OWN: dict[str, dict[str, Any]] = {
    "Cohere2VisionForConditionalGeneration": dict(
        model_type="cohere2_vision",
        text_config=FEW
        | HALF_WINDOWS
        | dict(
            num_experts=4,
            num_experts_per_tok=2,
            num_shared_experts=0,
            expert_selection_fn="softmax",
            norm_topk_prob=True,
            first_k_dense_replace=0,
            prefix_dense_intermediate_size=None,
            moe_intermediate_size=64,
            shared_expert_combination_strategy="average",
            logit_scale=1.0,
        ),
    ),
    "DeepseekOCRForCausalLM": _OCR
    | dict(
        language_config=_DEEPSEEK2
        | _WITHOUT_LATENT
        | dict(hidden_size=1280, num_attention_heads=10, num_key_value_heads=10),
        vision_config=dict(width={}),
        projector_config=dict(input_dim=2048, n_embed=1280, projector_type="linear"),
    ),
    "DeepseekVL2ForCausalLM": _OCR
    | dict(
        language_config=_DEEPSEEK2 | LATENT | dict(hidden_size=256, num_attention_heads=4, num_key_value_heads=4),
        vision_config=dict(layers=1),
        projector_config=dict(input_dim=1152, n_embed=256),
    ),
    "DotsVLMForCausalLM": dict(model_type="dots_vlm", **FEW, **DEEPSEEK, **LATENT, max_position_embeddings=2048),
    "Gemma3ForConditionalGeneration": dict(model_type="gemma3", text_config=FEW | HALF_WINDOWS),
    "Gemma3nForConditionalGeneration": dict(model_type="gemma3n", text_config=FEW | HALF_WINDOWS),
    "Gemma4ForConditionalGeneration": dict(
        model_type="gemma4", vision_config=dict(num_hidden_layers=1), text_config=FEW
    ),
    "Glm5NextForConditionalGeneration": dict(
        model_type="glm5_next", text_config=FEW, vision_config=dict(depth=1, swiglu_limit=7.0)
    ),
    "IQuestQ1ForCausalLM": dict(model_type="iquest_q1", num_hidden_layers=88),  # the class insists on its pattern
    "InternS2PreviewForConditionalGeneration": dict(model_type="intern_s2_preview", **_SEEING),
    "JetNemotronForCausalLM": _JET,
    "JetVLMForConditionalGeneration": dict(model_type="jet_vlm", text_config=_JET),
    "KimiK25ForConditionalGeneration": dict(
        model_type="kimi_k25",
        text_config=FEW | DEEPSEEK | LATENT | dict(hidden_size=256, num_attention_heads=4, model_type="deepseek_v3"),
        vision_config=dict(
            vt_hidden_size=1152,
            vt_num_attention_heads=16,
            vt_num_hidden_layers=1,
            vt_intermediate_size=512,
            mm_hidden_size=1152,
            text_hidden_size=256,
            hidden_size=1152,
            num_attention_heads=16,
            num_hidden_layers=1,
            intermediate_size=512,
        ),
    ),
    "Lfm2BidirectionalModel": dict(model_type="lfm2", layer_types=["conv", "full_attention"] * (LAYERS // 2), **FEW),
    "LightOnOCRForConditionalGeneration": dict(model_type="mistral3", text_config=_QWEN3),
    "MiMoV2FlashForCausalLM": MIMO | dict(model_type="mimo_v2_flash"),
    "MiMoV2ForCausalLM": MIMO | dict(model_type="mimo_v2_flash"),
    "MiniCPMSALAForCausalLM": GENERIC
    | dict(
        dim_model_base=256,
        scale_emb=1,
        scale_depth=1.0,
        mixer_types=["minicpm4", "lightning-attn"] * (LAYERS // 2),
        lightning_nh=8,
        lightning_nkv=8,
        lightning_head_dim=32,
        lightning_use_rope=True,
        lightning_scale="1/sqrt(d)",
        qk_norm=True,
        use_output_gate=True,
        attn_use_output_gate=True,
        use_output_norm=True,
        attn_use_rope=False,
    ),
    "MiniMaxM3SparseForCausalLM": MINIMAX | dict(moe_layer_freq=[0, 1, 1, 1]),
    "NemotronHPuzzleForCausalLM": dict(
        model_type="nemotron_h_puzzle",
        n_groups=2,
        hybrid_override_pattern="M*M*",
        block_configs=[dict(block_type="mamba"), dict(block_type="attention")] * (LAYERS // 2),
        **FEW,
    ),
    "NVILAForConditionalGeneration": _NVILA,
    "NVILALiteForConditionalGeneration": _NVILA,
    "Phi3SmallForCausalLM": GENERIC
    | dict(
        mup_embedding_multiplier=10.0,
        mup_use_scaling=True,
        mup_width_multiplier=8.0,
        mup_attn_multiplier=1.0,
        dense_attention_every_n_layers=None,
        gegelu_limit=20.0,
        ff_intermediate_size=512,
        ff_dim_multiplier=None,
        rope_embedding_base=1e4,
        rope_position_scale=1.0,
        dummy_token_indices=[],
        blocksparse_block_size=64,
        blocksparse_num_local_blocks=16,
        blocksparse_vert_stride=8,
        blocksparse_homo_head_pattern=False,
        blocksparse_triton_kernel_block_size=64,
        hidden_act="gegelu",
    ),
    "Qwen3ASRForConditionalGeneration": dict(
        model_type="qwen3_asr", thinker_config=dict(text_config=FEW)
    ),
    "Qwen3OmniMoeForConditionalGeneration": dict(
        model_type="qwen3_omni_moe", thinker_config=dict(text_config=FEW)
    ),
    "Qwen3_5MoeForConditionalGeneration": dict(model_type="qwen3_5_moe", **_SEEING),
    "Qwen4ExpForConditionalGeneration": dict(model_type="qwen4_exp", **_SEEING),
    "XLMRobertaForSequenceClassification": dict(model_type="xlm-roberta", position_embedding_type="absolute", **FEW),
    "Contriever": dict(model_type="bert", position_embedding_type="absolute", **FEW),
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = (
    {name: dict(GENERIC) for name in _GENERIC_NAMES.split()}
    | {
        name: dict(model_type=kind, text_config=FEW)
        for name, kind in (pair.split() for pair in _TEXT_INSIDE.split(","))
    }
    | _OWN
)
