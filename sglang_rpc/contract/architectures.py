"""What RPC says to each architecture in SGLang's registry, by its name: the launcher asks before it loads weights,
`python -m sglang_rpc.doctor --model-path` asks for a checkpoint, and docs/architectures.md is made from it.

A name decides only what SGLang's code for it always does. Where the configuration decides, layers are counted once the
model is built: `refusals.model` has the last word on every model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What some architectures have in common."""

    title: str
    names: str  #: the architectures, separated by blanks
    facts: Mapping[str, Any] = field(default_factory=dict)  #: of `ServingFacts`, what differs from a plain model
    depends: str = ""  #: on what of the configuration; "": every model of these architectures has those facts

    @property
    def architectures(self) -> tuple[str, ...]:
        """Their names, in their order."""
        return tuple(self.names.split())

    @property
    def flags(self) -> dict[str, Any]:
        """Of `facts`, those that a name decides: it tells whether, never how many."""
        known = {name: value for name, value in self.facts.items() if isinstance(value, bool)}
        return {} if self.depends else known


FULL = Kind(
    "full attention",
    """
    ApertusForCausalLM ArceeForCausalLM BaichuanForCausalLM BailingMMNativeForConditionalGeneration
    BailingMM2NativeForConditionalGeneration BailingMoEForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM
    ChatGLMModel CohereForCausalLM Cosmos3EdgeForConditionalGeneration Cosmos3ForConditionalGeneration
    DbrxForCausalLM DeepseekForCausalLM DotsOCRForCausalLM Ernie4_5_ForCausalLM Ernie4_5_MoeForCausalLM
    Ernie4_5_VLMoeForConditionalGeneration ExaoneForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM
    GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration
    GlmAsrForConditionalGeneration GlmOcrForConditionalGeneration GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeSharedForCausalLM HYV3ForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM IQuestCoderForCausalLM
    InternLM2ForCausalLM InternLM3ForCausalLM InternS1ForConditionalGeneration InternS1ProForConditionalGeneration
    K2HorizonForCausalLM LightOnOCRForConditionalGeneration LlamaForCausalLM LlavaLlamaForCausalLM
    LlavaMistralForCausalLM LlavaQwenForCausalLM LlavaVidForCausalLM LocateAnythingForConditionalGeneration
    MiDashengLMModel MiMoForCausalLM MiniCPMForCausalLM MiniCPMO MiniCPMV MiniMaxM2ForCausalLM Ministral3ForCausalLM
    Mistral3ForConditionalGeneration MistralForCausalLM MixtralForCausalLM MultiModalityCausalLM
    NVILAForConditionalGeneration NVILALiteForConditionalGeneration NanbeigeForCausalLM OPTForCausalLM OlmoForCausalLM
    OlmoeForCausalLM OrionForCausalLM POINTSV15ChatModel PaddleOCRVLForConditionalGeneration PersimmonForCausalLM
    Phi3ForCausalLM Phi3SmallForCausalLM Phi4MMForCausalLM PhiForCausalLM PhiMoEForCausalLM QWenLMHeadModel
    QuantMixtralForCausalLM Qwen2AudioForConditionalGeneration Qwen2ForCausalLM Qwen2MoeForCausalLM
    Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration Qwen3ASRForConditionalGeneration
    Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3OmniMoeForConditionalGeneration Qwen3VLForConditionalGeneration
    Qwen3VLMoeForConditionalGeneration Sarashina2VisionForCausalLM SarvamMoEForCausalLM SolarForCausalLM
    StableLmForCausalLM Starcoder2ForCausalLM Step3VLForConditionalGeneration StepVLForConditionalGeneration
    TeleFLMForCausalLM TorchNativeLlamaForCausalLM TorchNativePhi3ForCausalLM VoxtralForConditionalGeneration
    XllmForCausalLM XverseForCausalLM XverseMoeForCausalLM YiVLForCausalLM
    """,
)
LATENT = Kind(
    "latent attention (MLA)",
    """
    DeepseekV2ForCausalLM DeepseekVL2ForCausalLM DotsVLMForCausalLM Glm4MoeLiteForCausalLM
    KimiK25ForConditionalGeneration KimiVLForConditionalGeneration MiniCPM3ForCausalLM
    """,
)
LATENT_OR_SPARSE = Kind(
    "latent attention (MLA), or sparse attention over it (DSA)",
    "DeepseekV3ForCausalLM LongcatFlashForCausalLM MistralLarge3ForCausalLM",
    {"sparse_attention": True},
    depends="`index_topk`: without it, the model is served",
)
LANGUAGE_MODEL_INSIDE = Kind(
    "that of the language model inside",
    "DeepseekOCRForCausalLM InternVLChatModel LlavaForConditionalGeneration PixtralForConditionalGeneration",
    depends="the language model, for whose architecture the same holds",
)
NOT_GENERATIVE = Kind(
    "embedding, reward and classification models, and encoders",
    """
    BertForSequenceClassification BertModel CLIPModel Contriever EmbeddingGemma2Model EmbeddingGemmaModel
    Gemma2ForSequenceClassification InternLM2ForRewardModel Lfm2BidirectionalModel LlamaEmbeddingModel
    LlamaForClassification LlamaForSequenceClassification LlamaForSequenceClassificationWithNormal_Weights MistralModel
    NanbeigeForSequenceClassification PixtralVisionModel Qwen2ForRewardModel Qwen2ForSequenceClassification
    Qwen3ForRewardModel Qwen3ForSequenceClassification Qwen3Model TransformersEmbeddingModel
    TransformersForSequenceClassification TransformersMoEEmbeddingModel TransformersMoEForSequenceClassification
    TransformersMultiModalEmbeddingModel TransformersMultiModalForSequenceClassification
    TransformersMultiModalMoEEmbeddingModel TransformersMultiModalMoEForSequenceClassification
    XLMRobertaForSequenceClassification XLMRobertaModel
    """,
    {"generates": False},
)
DRAFT = Kind(
    "draft models of speculative decoding",
    """
    BailingMoeForCausalLMNextN DFlash2BeamDraftModel DFlash2DraftModel DFlashDraftModel DFlashLagunaForCausalLM
    DSparkDraftModel DSparkMiniMaxDraftModel DeepseekV3ForCausalLMNextN DeepseekV4ForCausalLMDSpark
    DeepseekV4ForCausalLMNextN Dots3NoteForCausalLMNextN Eagle3DeepseekV2ForCausalLM Ernie4_5_MoeForCausalLMMTP
    ExaoneMoEForCausalLMMTP Gemma4AssistantForCausalLM Gemma4UnifiedAssistantForCausalLM GigaChat35ForCausalLMNextN
    Glm4MoeForCausalLMNextN Glm4MoeLiteForCausalLMNextN Glm5NextForConditionalGenerationNextN GlmMoeDsaForCausalLMNextN
    GlmOcrForConditionalGenerationNextN HYV3ForCausalLMNextN HYV4ForCausalLMNextN IQuestQ1MTP
    InklingForConditionalGenerationMTP Lfm2DSparkDraftModel LiLiCorrDraftModel LingDSparkModel LlamaForCausalLMEagle
    LlamaForCausalLMEagle3 LongcatFlashForCausalLMNextN MiMoMTP MiMoV2MTP MiniMaxDFlash2DraftModel
    MistralForCausalLMEagle MistralLarge3ForCausalLMEagle MuseGlimmerAssistantModel NemotronHForCausalLMMTP
    Qwen2ForCausalLMEagle Qwen3DSparkModel Qwen3MoeForCausalLMMTP Qwen3NextForCausalLMMTP Qwen3_5ForCausalLMMTP
    Qwen4ExpForCausalLMMTP Step3p5MTP
    """,
    {"draft": True},
)
DIFFUSION = Kind(
    "text diffusion",
    "DiffusionGemmaForBlockDiffusion LLaDA2MoeModelLM SDARForCausalLM SDARMoeForCausalLM",
    {"diffusion": True},
)
ENCODER_DECODER = Kind(
    "encoder-decoder models",
    "MllamaForConditionalGeneration MossVLForConditionalGeneration WhisperForConditionalGeneration",
    {"encoder_decoder": True},
)
RECURRENT = Kind(
    "full attention beside recurrent layers: gated delta nets, KDA, Mamba 2, short convolutions",
    """
    BailingMoeV3ForCausalLM BailingMoeV3VLForConditionalGeneration FalconH1ForCausalLM GraniteMoeHybridForCausalLM
    InternS2MobiusForConditionalGeneration InternS2PreviewForConditionalGeneration KimiK3ForConditionalGeneration
    KimiK3LinearForCausalLM KimiLinearForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM Lfm2VlForConditionalGeneration
    MiniCPMV4_6ForConditionalGeneration MiniCPMV4_7ForConditionalGeneration NemotronHForCausalLM
    NemotronHPuzzleForCausalLM NemotronH_Nano_Omni_Reasoning_V3 NemotronH_Nano_VL_V2 NemotronH_Omni_Reasoning_V3
    Qwen3NextForCausalLM Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM
    Qwen3_5MoeForConditionalGeneration
    """,
)
OTHER_RECURRENCE = Kind(
    "recurrent layers alone, or beside attention of another kind (lightning, windows, indexers, convolutions)",
    """
    BailingMoeV2_5ForCausalLM FalconMambaForCausalLM Glm5NextForConditionalGeneration InklingForConditionalGeneration
    JetNemotronForCausalLM JetVLMForConditionalGeneration Mamba2ForCausalLM MambaForCausalLM MiniCPMSALAForCausalLM
    Qwen4ExpForConditionalGeneration ZayaForCausalLM
    """,
    {"other_recurrence": True},
)
SPARSE = Kind(
    "sparse attention, whose indexer chooses keys (DSA and others)",
    """
    DeepseekV32ForCausalLM DeepseekV4ForCausalLM Dots3NoteForCausalLM GlmMoeDsaForCausalLM HYV4ForCausalLM
    MiniMaxM3SparseForCausalLM MiniMaxM3SparseForConditionalGeneration
    """,
    {"sparse_attention": True},
)
WINDOWS = Kind(
    "full attention and sliding windows",
    """
    AfmoeForCausalLM Cohere2ForCausalLM Cohere2MoeForCausalLM Cohere2VisionForConditionalGeneration
    Exaone4ForCausalLM ExaoneMoEForCausalLM ExaoneMoeForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM
    Gemma3ForConditionalGeneration GptOssForCausalLM GraniteMoeSWAForCausalLM GraniteSWAForCausalLM
    IQuestLoopCoderForCausalLM IQuestQ1ForCausalLM LagunaForCausalLM MellumForCausalLM
    MuseSparkForConditionalGeneration Olmo2ForCausalLM Spark2_5ForCausalLM
    """,
    {"window_layers": 1, "decoder_layers": 2, "pool_layers": 2, "reach": 2**20},
    depends="`sliding_window`: served if compressions keep what a window sees ([models.md](models.md#sliding-windows))",
)
WINDOW_POOL = Kind(
    "full attention and sliding windows, in a KV pool of their own",
    """
    BeamForCausalLM Gemma4ForCausalLM Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration
    MiMoV2ASRForCausalLM MiMoV2FlashForCausalLM MiMoV2ForCausalLM MuseGlimmerForCausalLM
    MuseGlimmerForConditionalGeneration Step3p5ForCausalLM Step3p7ForConditionalGeneration
    """,
    {**WINDOWS.facts, "kv_pool": "SWAKVPool", "window_page": 64},
    depends="`sliding_window`, and for its pages on the interval: served if compressions keep what a window sees and "
    "evict whole pages ([models.md](models.md#windows-with-a-kv-pool-of-their-own))",
)
ONLY_WINDOWS = Kind(
    "sliding windows alone",
    "UnlimitedOCRForCausalLM",
    {"window_layers": 1, "decoder_layers": 1},
)
CHUNKS = Kind(
    "full attention and chunked attention",
    "Llama4ForCausalLM Llama4ForConditionalGeneration",
    {"chunked_layers": 1},
)
SHARED_KV = Kind(
    "sliding windows, and layers that use another layer's KV",
    "Gemma3nForCausalLM Gemma3nForConditionalGeneration",
    {"window_layers": 1, "decoder_layers": 2, "pool_layers": 2, "shared_kv": 1},
)
BY_DISTANCE = Kind(
    "full attention, at a temperature by distance",
    "Grok1ForCausalLM Grok1ModelForCausalLM",
    {"distance_layers": 1},
    depends="`attn_temperature_len`: without it, the model is served",
)
BIDIRECTIONAL = Kind("attention to the whole prompt, later tokens too", "HrmTextForCausalLM", {"other_attention": 1})
OTHER_SHAPES = Kind(
    "full attention, whose heads differ from layer to layer",
    "DeciLMForCausalLM",
    {"head_shapes": 2},
    depends="`block_configs`: a model of equal layers is served",
)
OWN_LATENT = Kind(
    "latent attention (MLA) of its own kind",
    "GigaChat35ForCausalLM SarvamMLAForCausalLM",
    {"own_dispatch": 1},
)
DRAWING = Kind(
    "full attention, at positions of the image that is drawn",
    "GlmImageForConditionalGeneration",
    {"position_table": True},
)
UNSEEN = Kind(
    "attention outside of SGLang's own model code",
    """
    MindSporeForCausalLM TransformersForCausalLM TransformersMoEForCausalLM TransformersMultiModalForCausalLM
    TransformersMultiModalMoEForCausalLM
    """,
    {"decoder_layers": 0},
)

KINDS = (
    *(FULL, LATENT, LATENT_OR_SPARSE, LANGUAGE_MODEL_INSIDE, WINDOWS, WINDOW_POOL, ONLY_WINDOWS, CHUNKS, SHARED_KV),
    *(RECURRENT, OTHER_RECURRENCE),
    *(SPARSE, OWN_LATENT, OTHER_SHAPES, BY_DISTANCE, BIDIRECTIONAL, DRAWING, UNSEEN, DIFFUSION, ENCODER_DECODER),
    *(DRAFT, NOT_GENERATIVE),
)
KIND_OF: Mapping[str, Kind] = {name: kind for kind in KINDS for name in kind.architectures}


def flags_of(architecture: str) -> dict[str, Any]:
    """Fields of `ServingFacts` that this name decides, as far as they differ from a plain model's; {} if unknown."""
    kind = KIND_OF.get(architecture)
    return {} if kind is None else kind.flags
