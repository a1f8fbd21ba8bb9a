"""A small configuration of every architecture whose layers SGLang can build without a GPU and without weights.

Sizes are the configuration class's own: on the meta device they cost nothing. Layers cost time, so there are few.
"""

from __future__ import annotations

from typing import Any

from tests.unit.architectures import drafts, wrapped
from tests.unit.architectures.parts import (
    BAILING,
    DEEPSEEK,
    FEW,
    GENERIC,
    HALF_WINDOWS,
    INDEXER,
    LATENT,
    LAYERS,
    LINEAR,
    YARN,
)

GENERIC_NAMES = """
    BailingMoEForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM DeepseekForCausalLM Ernie4_5_ForCausalLM
    Grok1ForCausalLM Grok1ModelForCausalLM IQuestCoderForCausalLM IQuestLoopCoderForCausalLM InternLM2ForCausalLM
    InternLM2ForRewardModel InternLM3ForCausalLM LLaDA2MoeModelLM LlamaEmbeddingModel LlamaForClassification
    LlamaForSequenceClassificationWithNormal_Weights MiMoForCausalLM MiniCPMForCausalLM MistralLarge3ForCausalLM
    OrionForCausalLM PhiMoEForCausalLM QWenLMHeadModel QuantMixtralForCausalLM Qwen2ForRewardModel Qwen3ForRewardModel
    SDARForCausalLM SDARMoeForCausalLM SarvamMLAForCausalLM SarvamMoEForCausalLM SolarForCausalLM TeleFLMForCausalLM
    TorchNativeLlamaForCausalLM TorchNativePhi3ForCausalLM XverseForCausalLM XverseMoeForCausalLM
"""
#: Names with a type of configuration that transformers or SGLang has.
TYPED = """
    AfmoeForCausalLM afmoe, ApertusForCausalLM apertus, ArceeForCausalLM arcee,
    BailingMoeV2_5ForCausalLM bailing_hybrid,
    BailingMoeV3ForCausalLM bailing_hybrid, BeamForCausalLM beam, BertForSequenceClassification bert, BertModel bert,
    CLIPModel clip, ChatGLMModel chatglm, Cohere2ForCausalLM cohere2, Cohere2MoeForCausalLM cohere2_moe,
    CohereForCausalLM cohere, Cosmos3ForConditionalGeneration cosmos3_omni, DeepseekV2ForCausalLM deepseek_v2,
    DeepseekV32ForCausalLM deepseek_v32, DeepseekV3ForCausalLM deepseek_v3, DotsOCRForCausalLM dots_ocr,
    EmbeddingGemmaModel gemma3_text, Ernie4_5_MoeForCausalLM ernie4_5_moe, Exaone4ForCausalLM exaone4,
    ExaoneForCausalLM exaone, ExaoneMoEForCausalLM exaone_moe, ExaoneMoeForCausalLM exaone_moe,
    FalconH1ForCausalLM falcon_h1, GPT2LMHeadModel gpt2, GPTBigCodeForCausalLM gpt_bigcode, GPTJForCausalLM gptj,
    Gemma2ForCausalLM gemma2, Gemma2ForSequenceClassification gemma2, Gemma3ForCausalLM gemma3_text,
    Gemma3nForCausalLM gemma3n_text, GemmaForCausalLM gemma, Glm4ForCausalLM glm4, Glm4MoeForCausalLM glm4_moe,
    Glm4MoeLiteForCausalLM glm4_moe_lite, Glm4vForConditionalGeneration glm4v,
    Glm4vMoeForConditionalGeneration glm4v_moe, GlmImageForConditionalGeneration glm_image,
    GlmMoeDsaForCausalLM glm_moe_dsa, GlmOcrForConditionalGeneration glm_ocr, GptOssForCausalLM gpt_oss,
    GraniteForCausalLM granite, GraniteMoeForCausalLM granitemoe, GraniteMoeHybridForCausalLM granitemoehybrid,
    GraniteMoeSWAForCausalLM granitemoe_swa, GraniteMoeSharedForCausalLM granitemoeshared,
    GraniteSWAForCausalLM granite_swa, HYV3ForCausalLM hy_v3, HrmTextForCausalLM hrm_text,
    HunYuanDenseV1ForCausalLM hunyuan_v1_dense, HunYuanMoEV1ForCausalLM hunyuan_v1_moe,
    KimiLinearForCausalLM kimi_linear, KimiVLForConditionalGeneration kimi_vl, LagunaForCausalLM laguna,
    Lfm2ForCausalLM lfm2, Lfm2MoeForCausalLM lfm2_moe, Llama4ForCausalLM llama4_text,
    Llama4ForConditionalGeneration llama4, LlamaForCausalLM llama, LlamaForSequenceClassification llama,
    LongcatFlashForCausalLM longcat_flash, Mamba2ForCausalLM mamba2, MellumForCausalLM mellum,
    MiniCPM3ForCausalLM minicpm3, MiniMaxM2ForCausalLM minimax_m2, Ministral3ForCausalLM ministral3,
    MistralForCausalLM mistral, MistralModel mistral, MixtralForCausalLM mixtral, NanbeigeForCausalLM nanbeige,
    NanbeigeForSequenceClassification nanbeige, NemotronHForCausalLM nemotron_h, OPTForCausalLM opt,
    Olmo2ForCausalLM olmo2, OlmoForCausalLM olmo, OlmoeForCausalLM olmoe,
    PaddleOCRVLForConditionalGeneration paddleocr_vl, PersimmonForCausalLM persimmon, Phi3ForCausalLM phi3,
    PhiForCausalLM phi, Qwen2ForCausalLM qwen2, Qwen2ForSequenceClassification qwen2, Qwen2MoeForCausalLM qwen2_moe,
    Qwen2VLForConditionalGeneration qwen2_vl, Qwen2_5_VLForConditionalGeneration qwen2_5_vl, Qwen3ForCausalLM qwen3,
    Qwen3ForSequenceClassification qwen3, Qwen3Model qwen3, Qwen3MoeForCausalLM qwen3_moe,
    Qwen3NextForCausalLM qwen3_next,
    Qwen3VLForConditionalGeneration qwen3_vl, Qwen3VLMoeForConditionalGeneration qwen3_vl_moe,
    Qwen3_5ForCausalLM qwen3_5_text, Qwen3_5ForConditionalGeneration qwen3_5, Qwen3_5MoeForCausalLM qwen3_5_moe_text,
    Spark2_5ForCausalLM spark2_5, StableLmForCausalLM stablelm, Starcoder2ForCausalLM starcoder2,
    Step3VLForConditionalGeneration step3_vl, WhisperForConditionalGeneration whisper, XLMRobertaModel xlm-roberta,
    ZayaForCausalLM zaya
"""

#: What the code reads beside, or for which the class's own value will not do.
MORE: dict[str, dict[str, Any]] = {
    "AfmoeForCausalLM": dict(num_experts=4, num_experts_per_tok=2, **HALF_WINDOWS),
    "BailingMoEForCausalLM": BAILING,
    "BailingMoeForCausalLM": BAILING,
    "BailingMoeV2ForCausalLM": BAILING,
    "BertForSequenceClassification": dict(position_embedding_type="absolute"),
    "BertModel": dict(position_embedding_type="absolute"),
    "Cosmos3ForConditionalGeneration": dict(text_config=FEW),
    "DeepseekV2ForCausalLM": DEEPSEEK,
    "DeepseekV32ForCausalLM": DEEPSEEK | INDEXER,
    "DeepseekV3ForCausalLM": DEEPSEEK,
    "EmbeddingGemmaModel": dict(use_bidirectional_attention=True),
    "Exaone4ForCausalLM": dict(sliding_window_pattern="LLLG", **HALF_WINDOWS),
    "ExaoneForCausalLM": dict(pad_token_id=0),
    "ExaoneMoEForCausalLM": dict(is_moe_layer=[0, 1, 1, 1]),
    "ExaoneMoeForCausalLM": dict(is_moe_layer=[0, 1, 1, 1]),
    "Gemma2ForCausalLM": dict(hidden_act="gelu_pytorch_tanh"),
    "Gemma2ForSequenceClassification": dict(hidden_act="gelu_pytorch_tanh"),
    "Glm4MoeLiteForCausalLM": dict(first_k_dense_replace=1),
    "GlmMoeDsaForCausalLM": DEEPSEEK,
    "GraniteMoeHybridForCausalLM": dict(layer_types=["mamba", "attention"] * (LAYERS // 2)),
    "HYV3ForCausalLM": dict(route_norm=True),
    "KimiLinearForCausalLM": dict(
        **LATENT,
        linear_attn_config=dict(
            kda_layers=[1, 2, 3], full_attn_layers=[4], num_heads=4, head_dim=32, short_conv_kernel_size=4
        ),
    ),
    "KimiVLForConditionalGeneration": dict(text_config=FEW | DEEPSEEK),
    "LLaDA2MoeModelLM": BAILING,
    "LagunaForCausalLM": HALF_WINDOWS,
    "Lfm2MoeForCausalLM": dict(layer_types=["conv", "full_attention"] * (LAYERS // 2)),
    "Llama4ForConditionalGeneration": dict(text_config=FEW),
    "LlamaForClassification": dict(classification_out_size=2),
    "Gemma3ForCausalLM": dict(layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2)),
    "Gemma3nForCausalLM": dict(layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2)),
    "LongcatFlashForCausalLM": dict(num_layers=LAYERS, rope_scaling=YARN, use_ngram_embedding=False),
    "Mamba2ForCausalLM": dict(intermediate_size=512, rms_norm=True),
    "MellumForCausalLM": HALF_WINDOWS,
    "MiniCPMForCausalLM": dict(dim_model_base=256, scale_emb=1, scale_depth=1.0),
    "MiniMaxM2ForCausalLM": dict(scoring_func="sigmoid"),
    "MistralLarge3ForCausalLM": dict(rope_scaling=YARN, **LATENT),
    "NemotronHForCausalLM": dict(n_groups=2, hybrid_override_pattern="M*M*"),
    "Qwen2VLForConditionalGeneration": dict(vision_config=dict(in_chans=3, depth=1), text_config=FEW),
    "Qwen3VLForConditionalGeneration": dict(text_config=FEW),
    "Qwen3VLMoeForConditionalGeneration": dict(text_config=FEW),
    "Qwen3NextForCausalLM": LINEAR,
    "Qwen3_5ForCausalLM": LINEAR,
    "Qwen3_5ForConditionalGeneration": dict(
        vision_config=dict(deepstack_visual_indexes=[], depth=1), text_config=FEW | LINEAR
    ),
    "Qwen3_5MoeForCausalLM": LINEAR,
    "SarvamMLAForCausalLM": dict(rope_scaling=YARN, **LATENT, **BAILING),
    "SarvamMoEForCausalLM": BAILING,
    "SolarForCausalLM": dict(bskcn_1=[1], bskcn_2=[2], bskcn_3=[3], bskcn_4=[3], bskcn_tv=[0.9, 0.8]),
    "Step3VLForConditionalGeneration": dict(
        pad_token_id=0, text_config=FEW | dict(pad_token_id=0, moe_layers_enum="2,3")
    ),
    "XLMRobertaModel": dict(position_embedding_type="absolute"),
    "XverseMoeForCausalLM": dict(moe_top_k=2),
}
#: Named variants, where the configuration decides: variant -> architecture, what differs.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "OLMo 3": ("Olmo2ForCausalLM", dict(model_type="olmo3")),
    "Laguna without windows": ("LagunaForCausalLM", dict(model_type="laguna", sliding_window=0)),
    "DeepSeek V3 with an indexer": ("DeepseekV3ForCausalLM", INDEXER),
    "a Qwen2 whose configuration names a window": (
        "Qwen2ForCausalLM",
        dict(use_sliding_window=True, sliding_window=64, max_window_layers=1),
    ),
    "a Grok with temperatures": ("Grok1ForCausalLM", dict(attn_temperature_len=1024)),
}


#: Those whose configuration is written out whole.
GIVEN = wrapped.CONFIGS | drafts.CONFIGS


def configs() -> dict[str, dict[str, Any]]:
    """config.json of each architecture, and of each variant under its name."""
    typed = {name: dict(model_type=kind) for name, kind in (pair.split() for pair in TYPED.split(","))}
    made = {name: dict(GENERIC) for name in GENERIC_NAMES.split()} | typed
    for name, config in made.items():
        more = MORE.get(name, {})
        layers = {} if "text_config" in more else FEW
        config.update(layers | more | dict(architectures=[name], dtype="bfloat16"))
    for variant, (name, more) in VARIANTS.items():
        base = {} if "model_type" in more else made[name]
        made[variant] = base | FEW | more | dict(architectures=[name], dtype="bfloat16")
    return made | {name: config | dict(architectures=[name], dtype="bfloat16") for name, config in GIVEN.items()}
