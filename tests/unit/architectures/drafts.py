"""Small configurations of models that propose tokens to another one: its layers, or some of their own."""

from __future__ import annotations

from typing import Any

from tests.unit.architectures.parts import DEEPSEEK, FEW, GENERIC, HALF_WINDOWS, LAYERS, LINEAR
from tests.unit.architectures.wrapped import MIMO, MINIMAX

#: Names with a type of configuration, whose own values will do but for the number of layers.
_TYPED = """
    Ernie4_5_MoeForCausalLMMTP ernie4_5_moe, Glm4MoeForCausalLMNextN glm4_moe,
    Glm5NextForConditionalGenerationNextN glm5_next, GlmOcrForConditionalGenerationNextN glm_ocr,
    LlamaForCausalLMEagle llama, Qwen2ForCausalLMEagle qwen2, Qwen3MoeForCausalLMMTP qwen3_moe,
    Qwen4ExpForCausalLMMTP qwen4_exp
"""
_GENERIC_NAMES = "BailingMoeForCausalLMNextN DFlashDraftModel DFlashLagunaForCausalLM MiMoMTP"
_FLASH = dict(target_layer_ids=[0, 1], mask_token_id=5, block_size=4)
_SELECTED = GENERIC | dict(block_size=4, dflash_config=dict(selector_rank=16, selector_top_k=8, **_FLASH))
_SPARK = dict(markov_rank=16, markov_head_type="vanilla", **_FLASH)
_MARKOV = GENERIC | _SPARK | dict(dspark_config=_SPARK, dflash_config=_SPARK)
_OWN: dict[str, dict[str, Any]] = {
    "DFlash2BeamDraftModel": _SELECTED,
    "DFlash2DraftModel": _SELECTED,
    "DSparkDraftModel": _MARKOV,
    "DSparkMiniMaxDraftModel": _MARKOV | MINIMAX | dict(dspark_config=_SPARK, **_SPARK),
    "DeepseekV3ForCausalLMNextN": dict(model_type="deepseek_v3", **FEW, **DEEPSEEK),
    "Eagle3DeepseekV2ForCausalLM": dict(
        model_type="deepseek_v3", num_hidden_layers=1, draft_vocab_size=512, **DEEPSEEK
    ),
    "ExaoneMoEForCausalLMMTP": dict(model_type="exaone_moe", is_moe_layer=[0, 1, 1, 1], **FEW),
    "Gemma4AssistantForCausalLM": dict(
        model_type="gemma4_assistant",
        text_config=FEW
        | dict(hidden_size_per_layer_input=0, vocab_size_per_layer_input=0, num_kv_shared_layers=LAYERS),
    ),
    "Gemma4UnifiedAssistantForCausalLM": dict(model_type="gemma4_unified_assistant", text_config=FEW),
    "Glm4MoeLiteForCausalLMNextN": dict(model_type="glm4_moe_lite", first_k_dense_replace=1, **FEW),
    "GlmMoeDsaForCausalLMNextN": dict(model_type="glm_moe_dsa", **FEW, **DEEPSEEK),
    "HYV3ForCausalLMNextN": dict(model_type="hy_v3", route_norm=True, **FEW),
    "InklingForConditionalGenerationMTP": dict(model_type="inkling_mm_model", text_config=FEW),
    "Lfm2DSparkDraftModel": _MARKOV,
    "LingDSparkModel": _MARKOV,
    "LlamaForCausalLMEagle3": GENERIC | dict(num_hidden_layers=1, draft_vocab_size=512),
    "MiMoV2MTP": MIMO,
    "MiniMaxDFlash2DraftModel": _SELECTED,
    "MuseGlimmerAssistantModel": GENERIC | HALF_WINDOWS | dict(model_type="muse_glimmer_assistant"),
    "NemotronHForCausalLMMTP": dict(
        model_type="nemotron_h",
        n_groups=2,
        hybrid_override_pattern="M*M*",
        num_nextn_predict_layers=1,
        mtp_hybrid_override_pattern="*E",
        **FEW,
    ),
    "Qwen3DSparkModel": _MARKOV,
    "Qwen3NextForCausalLMMTP": dict(model_type="qwen3_next", **FEW, **LINEAR),
    "Qwen3_5ForCausalLMMTP": dict(
        model_type="qwen3_5",
        vision_config=dict(deepstack_visual_indexes=[], depth=1),
        text_config=FEW | LINEAR,
    ),
}
CONFIGS: dict[str, dict[str, Any]] = (
    {name: dict(GENERIC) for name in _GENERIC_NAMES.split()}
    | {name: dict(model_type=kind, **FEW) for name, kind in (pair.split() for pair in _TYPED.split(","))}
    | _OWN
)
