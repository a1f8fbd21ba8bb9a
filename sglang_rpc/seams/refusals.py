"""What RPC refuses, as tables: rows of the server's arguments, of the model and pools, and of single requests.

Each row says when it applies, why RPC cannot work there, and the way out; its sentence is what a user reads.
SGLang is imported inside functions only, so that the tables can be read without it. `docs/limits.md` is these tables:
`python -m sglang_rpc.seams.refusals > docs/limits.md`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import SeamError, UnsupportedError

#: Attention backends whose kernels read K/V through a per-request list of slots, any slots, in any order.
ATTENTION_BACKENDS = ("fa3", "flashinfer", "torch_native", "triton")
#: Exactly these classes: a subclass may store K/V in another layout, or know its slots by other numbers.
KV_POOLS = ("MHATokenToKVPool",)
ROW_POOLS = ("ReqToTokenPool",)
ALLOCATORS = ("PagedTokenToKVPoolAllocator", "TokenToKVPoolAllocator")
TREES = ("UnifiedRadixCache",)
KV_DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")

_OFF = "start with --disable-rpc"


def _sentence(found: str, why: str, way_out: str) -> str:
    return f"{found} does not work with RPC: {why}; {way_out + ' or ' if way_out else ''}{_OFF}"


# ---- the server's arguments ---------------------------------------------------------------------------------


class Arguments:
    """The resolved server arguments by name. Raises SeamError for a name that this SGLang does not have."""

    def __init__(self, source: Any):
        self._source = source

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._source, name)
        except AttributeError:
            raise SeamError(
                f"this SGLang's ServerArgs has no {name}, which RPC must check before it starts; "
                f"install sglang==0.5.23, or {_OFF}"
            ) from None


@dataclass(frozen=True)
class ServerRow:
    """One refusal that the server's arguments or environment show."""

    name: str
    switches: str  #: the flags and variables it looks at, as a user knows them
    predicate: Callable[[Arguments], str | None]  #: what was given, in the user's spelling; None: nothing to refuse
    why: str
    way_out: str

    def sentence(self, given: str) -> str:
        return _sentence(given, self.why, self.way_out)


def refuse_server_args(server_args: Any, rpc_config: RPCConfig) -> None:
    """Check the arguments as SGLang resolved them; nothing has been spawned yet.

    Raises:
        UnsupportedError: the sentence of the first row that applies.
        SeamError: this SGLang lacks an argument that has to be checked.
    """
    from sglang.srt.arg_groups.overrides import resolving_view

    refuse_arguments(resolving_view(server_args))


def refuse_arguments(arguments: Any) -> None:
    """As `refuse_server_args`, on an object whose attributes are the final values. Needs no SGLang."""
    view = Arguments(arguments)
    for row in SERVER_ROWS:
        given = row.predicate(view)
        if given is not None:
            raise UnsupportedError(row.sentence(given))


def _on(flag: str) -> Callable[[Arguments], str | None]:
    """Predicate of a switch: `--enable-x` is the argument `enable_x`."""
    field = flag.removeprefix("--").replace("-", "_")
    return lambda args: flag if getattr(args, field) else None


def _above_one(flag: str) -> Callable[[Arguments], str | None]:
    """Predicate of a degree of parallelism, off at 1."""
    field = flag.removeprefix("--").replace("-", "_")
    return lambda args: f"{flag} {getattr(args, field)}" if getattr(args, field) > 1 else None


def _set_to_other_than(flag: str, *off: Any) -> Callable[[Arguments], str | None]:
    """Predicate of an option, off at None and at the values named."""
    field = flag.removeprefix("--").replace("-", "_")

    def given(args: Arguments) -> str | None:
        value = getattr(args, field)
        return None if value is None or value in off else f"{flag} {value}"

    return given


def _any(*predicates: Callable[[Arguments], str | None]) -> Callable[[Arguments], str | None]:
    return lambda args: next((given for p in predicates if (given := p(args)) is not None), None)


def _env(name: str) -> Callable[[Arguments], str | None]:
    """Predicate of a boolean environment variable; what is not clearly false counts as on."""

    def given(_args: Arguments) -> str | None:
        value = os.environ.get(name, "").strip()
        return None if value.lower() in ("", "0", "false", "no", "n") else f"{name}={value}"

    return given


def _vectorized_layout(_args: Arguments) -> str | None:
    # SGLang heeds it on ROCm with AITER only, and there the pool is laid out in 5-D tiles.
    value = os.environ.get("SGLANG_AITER_KV_CACHE_LAYOUT", "nhd").strip().lower()
    return f"SGLANG_AITER_KV_CACHE_LAYOUT={value}" if value not in ("", "nhd") else None


def _device(args: Arguments) -> str | None:
    # ROCm is "cuda" too. "cuda:1" is not a value SGLang documents, but it splits it the same way.
    value = str(args.device).split(":", 1)[0]
    return None if args.device is None or value in ("cuda", "cpu") else f"--device {args.device}"


def _attention_backend(args: Arguments) -> str | None:
    # The two narrower flags win over the wide one, phase by phase; None means SGLang has not chosen yet.
    for flag, value in (
        ("--decode-attention-backend", args.decode_attention_backend),
        ("--prefill-attention-backend", args.prefill_attention_backend),
        ("--attention-backend", args.attention_backend),
    ):
        if value is not None and value not in ATTENTION_BACKENDS:
            return f"{flag} {value} (given, or chosen by SGLang for this model and device)"
    return None


def _mixed_chunk_in_a_graph(args: Arguments) -> str | None:
    if not args.enable_mixed_chunk or args.cuda_graph_config is None:
        return None
    if args.chunked_prefill_size is not None and args.chunked_prefill_size <= 0:
        return None  # SGLang mixes only where it chunks
    backend = args.cuda_graph_config.prefill.backend
    return None if backend == "disabled" else f"--enable-mixed-chunk with --cuda-graph-backend-prefill {backend}"


SERVER_ROWS: tuple[ServerRow, ...] = (
    ServerRow(
        "speculative_decoding",
        "--speculative-algorithm, --decoupled-spec-role",
        _any(_set_to_other_than("--speculative-algorithm"), _set_to_other_than("--decoupled-spec-role", "null")),
        "draft tokens are allocated and rolled back by lengths that compression changes under them",
        "remove the flag",
    ),
    ServerRow(
        "pd_disaggregation",
        "--disaggregation-mode, --enable-pd-role-switch",
        _any(_set_to_other_than("--disaggregation-mode", "null"), _on("--enable-pd-role-switch")),
        "KV is handed between servers by token position, and transfers run beside the stream that moves entries",
        "remove the flag",
    ),
    ServerRow(
        "encoder_only",
        "--encoder-only",
        _on("--encoder-only"),
        "an encoder generates no tokens to compress",
        "remove --encoder-only",
    ),
    ServerRow(
        "embedding_model",
        "--is-embedding, --prefill-only-disable-kv-cache",
        _any(_on("--is-embedding"), _on("--prefill-only-disable-kv-cache")),
        "an embedding or prefill-only server generates no tokens to compress",
        "remove the flag",
    ),
    ServerRow(
        "diffusion_llm",
        "--dllm-algorithm",
        _set_to_other_than("--dllm-algorithm"),
        "a diffusion model rewrites blocks of tokens and has no last R queries to score with",
        "remove --dllm-algorithm",
    ),
    ServerRow(
        "pipeline_parallel",
        "--pp-size",
        _above_one("--pp-size"),
        "a pipeline keeps several micro-batches in flight, and RPC orders itself behind one",
        "remove --pp-size (use --tp-size instead)",
    ),
    ServerRow(
        "context_parallel",
        "--attn-cp-size, --enable-prefill-cp, --dcp-size",
        _any(_above_one("--attn-cp-size"), _on("--enable-prefill-cp"), _above_one("--dcp-size")),
        "a request's KV is spread over ranks by token position, so no rank can score or move all of it",
        "remove the flag (use --tp-size instead)",
    ),
    ServerRow(
        "kv_sharding",
        "--enable-kv-cache-sharding, --enable-dsa-cache-layer-split",
        _any(_on("--enable-kv-cache-sharding"), _on("--enable-dsa-cache-layer-split")),
        "a rank holds only some pages or layers of a request's KV, so no rank can move all of it",
        "remove the flag",
    ),
    ServerRow(
        "dp_attention",
        "--attn-dp-size, --dwdp-size, --enable-dp-attention",
        # --dwdp-size and the old --dp-size N --enable-dp-attention both resolve to attn_dp_size.
        _any(_above_one("--dwdp-size"), _above_one("--attn-dp-size"), _on("--enable-dp-attention")),
        "its ranks turn decode steps into prefill steps to keep pace with each other, and RPC records queries in "
        "decode steps",
        "remove the flag (--tp-size and --dp-size replicas work)",
    ),
    ServerRow(
        "elastic_ep",
        "--elastic-ep-backend, --elastic-ep-join-mode",
        _any(
            _set_to_other_than("--elastic-ep-backend", "none"),
            lambda args: f"--elastic-ep-join-mode {args.ep_join_mode}" if args.ep_join_mode is not None else None,
        ),
        "ranks may join and leave, and a compression needs every rank to take part",
        "remove the flag",
    ),
    ServerRow(
        "hierarchical_cache",
        "--enable-hierarchical-cache (--enable-hicache)",
        _on("--enable-hierarchical-cache"),
        "KV is copied between GPU and host beside the stream that moves entries, so a freed slot may still be written",
        "remove --enable-hierarchical-cache",
    ),
    ServerRow(
        "lmcache",
        "--enable-lmcache",
        _on("--enable-lmcache"),
        "LMCache stores KV under token ids that a compressed request's slots no longer match",
        "remove --enable-lmcache",
    ),
    ServerRow(
        "flexkv",
        "--enable-flexkv",
        _on("--enable-flexkv"),
        "FlexKV stores KV under token ids that a compressed request's slots no longer match",
        "remove --enable-flexkv",
    ),
    ServerRow(
        "external_linker",
        "--enable-unified-cache-external-linker",
        _on("--enable-unified-cache-external-linker"),
        "the linker moves KV to and from an external store beside the stream that moves entries",
        "remove --enable-unified-cache-external-linker",
    ),
    ServerRow(
        "radix_cache_backend",
        "--radix-cache-backend",
        _set_to_other_than("--radix-cache-backend"),
        "RPC keeps compressed KV out of SGLang's own prefix tree (UnifiedRadixCache) and knows no other",
        "remove --radix-cache-backend",
    ),
    ServerRow(
        "streaming_session",
        "--enable-streaming-session",
        _on("--enable-streaming-session"),
        "a streaming session hands a finished turn's row to the next turn and takes its KV length for a token count",
        "remove --enable-streaming-session",
    ),
    ServerRow(
        "session_radix_cache",
        "--enable-session-radix-cache",
        _on("--enable-session-radix-cache"),
        "a session holds on to the KV of its finished turns, and a compressed turn leaves only its prompt in the tree",
        "remove --enable-session-radix-cache",
    ),
    ServerRow(
        "hisparse",
        "--enable-hisparse",
        _on("--enable-hisparse"),
        "hierarchical sparse attention keeps its own map from token position to GPU or host memory",
        "remove --enable-hisparse",
    ),
    ServerRow(
        "unified_memory",
        "--enable-unified-memory",
        _on("--enable-unified-memory"),
        "its slot numbers are virtual, and its pools move entries on their own",
        "remove --enable-unified-memory",
    ),
    ServerRow(
        "page_major_layout",
        "--enable-page-major-kv-layout",
        _on("--enable-page-major-kv-layout"),
        "all layers of a page lie in one buffer, and RPC keeps different tokens in each layer's own",
        "remove --enable-page-major-kv-layout",
    ),
    ServerRow(
        "hnd_layout",
        "SGLANG_USE_HND_KVCACHE",
        _env("SGLANG_USE_HND_KVCACHE"),
        "K/V of a slot lie in pieces, head by head, and RPC moves whole slots",
        "unset SGLANG_USE_HND_KVCACHE",
    ),
    ServerRow(
        "vectorized_layout",
        "SGLANG_AITER_KV_CACHE_LAYOUT",
        _vectorized_layout,
        "K/V of a slot lie in tiles shared with other slots, and RPC moves whole slots",
        "unset SGLANG_AITER_KV_CACHE_LAYOUT",
    ),
    ServerRow(
        "kv_cache_dtype",
        "--kv-cache-dtype",
        lambda args: (
            f"--kv-cache-dtype {args.kv_cache_dtype}"
            if args.kv_cache_dtype not in ("auto", "bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2")
            else None
        ),
        "its entries carry block scales in buffers of their own, which RPC does not move",
        "remove it, use --kv-cache-dtype fp8_e4m3",
    ),
    ServerRow(
        "attention_backend",
        "--attention-backend, --decode-attention-backend, --prefill-attention-backend",
        _attention_backend,
        f"RPC is built for {', '.join(ATTENTION_BACKENDS)}, which read any list of slots and leave the queries "
        "roped where RPC records them",
        f"use one of them, say --attention-backend {ATTENTION_BACKENDS[-1]},",
    ),
    ServerRow(
        "device",
        "--device",
        _device,
        "RPC's streams, kernels and layouts are made for cuda and cpu",
        "use --device cuda or --device cpu,",
    ),
    ServerRow(
        "mlx",
        "SGLANG_USE_MLX",
        _env("SGLANG_USE_MLX"),
        "MLX has a scheduler loop and a KV pool of its own",
        "unset SGLANG_USE_MLX",
    ),
    ServerRow(
        "model_impl",
        "--model-impl",
        _set_to_other_than("--model-impl", "auto", "sglang"),
        "only SGLang's own model code lets RPC see each attention layer's queries",
        "use --model-impl sglang",
    ),
    ServerRow(
        "fused_decode_kernel",
        "--enable-nvidia-megakernel, --enable-amd-monokernel",
        _any(_on("--enable-nvidia-megakernel"), _on("--enable-amd-monokernel")),
        "one kernel runs the whole decode step, so no layer's queries can be recorded",
        "remove the flag",
    ),
    ServerRow(
        "torch_compile",
        "--enable-torch-compile",
        _on("--enable-torch-compile"),
        "the compiler would trace, or drop, the hook that records queries",
        "remove --enable-torch-compile",
    ),
    ServerRow(
        "two_batch_overlap",
        "--enable-two-batch-overlap",
        _on("--enable-two-batch-overlap"),
        "a step runs as two halves at once, and RPC records queries of whole steps",
        "remove --enable-two-batch-overlap",
    ),
    ServerRow(
        "pd_multiplexing",
        "--enable-pdmux",
        _on("--enable-pdmux"),
        "prefill and decode run at once on streams of their own, and RPC orders itself behind one",
        "remove --enable-pdmux",
    ),
    ServerRow(
        "mixed_chunk_in_a_graph",
        "--enable-mixed-chunk, --cuda-graph-backend-prefill",
        _mixed_chunk_in_a_graph,
        "decode rows of a mixed step would run inside a prefill CUDA graph, where their queries cannot be recorded",
        "remove --enable-mixed-chunk, add --cuda-graph-backend-prefill disabled",
    ),
    ServerRow(
        "kv_canary",
        "--kv-canary",
        _set_to_other_than("--kv-canary", "none"),
        "the canary checks that each slot still holds the token it was written for, and RPC moves entries",
        "remove --kv-canary",
    ),
    ServerRow(
        "ray",
        "--use-ray",
        _on("--use-ray"),
        "Ray's scheduler actors load no SGLang plugins, so nothing would be compressed and nothing would say so",
        "remove --use-ray",
    ),
    ServerRow(
        "rust_server",
        "SGLANG_RUST_SERVER",
        _env("SGLANG_RUST_SERVER"),
        "the Rust frontend passes no extra fields on, so responses could not say what was compressed",
        "unset SGLANG_RUST_SERVER",
    ),
    ServerRow(
        "tokenizer_workers",
        "--tokenizer-worker-num",
        _above_one("--tokenizer-worker-num"),
        "extra HTTP workers load no SGLang plugins, so they would neither check a request's options nor add its "
        "receipt",
        "remove --tokenizer-worker-num",
    ),
)


# ---- the model and the pools --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServingFacts:
    """What is known once the model and its pools are built. Counts are layers unless named otherwise.

    The defaults describe a plain model, such as a Qwen2 or Llama on one GPU.
    """

    model: str = "LlamaForCausalLM"  #: architecture
    generates: bool = True  #: False: an embedding, reward or classification model
    encoder_decoder: bool = False
    latent_attention: bool = False  #: MLA, and DSA which builds on it
    recurrent_state: bool = False  #: Mamba, linear attention, short convolutions
    ngram_embedding: bool = False
    mrope: bool = False  #: rope positions of time, height and width
    decoder_layers: int = 1  #: attention layers whose KV could be compressed
    other_attention: int = 0  #: encoder-only, bidirectional or cross attention
    window_layers: int = 0  #: sliding-window or chunked-local attention
    distance_layers: int = 0  #: attention that depends on the distance to a key (xAI temperature, ALiBi)
    capped_oddly: int = 0  #: attention logits capped otherwise than by tanh, which the scorer applies itself
    shared_kv: int = 0  #: layers that use another layer's KV
    head_shapes: int = 1  #: distinct (query heads, KV heads, head size) among the decoder layers
    total_kv_heads: int = 1  #: of the model, not of this rank
    tp_size: int = 1  #: ranks that share the attention heads
    page_size: int = 1  #: slots
    decode_backend: str = "torch_native"
    prefill_backend: str = "torch_native"
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


@dataclass(frozen=True)
class ModelRow:
    """One refusal that only the built model and pools show."""

    name: str
    predicate: Callable[[ServingFacts, RPCConfig], str | None]  #: what was found; None: nothing to refuse
    why: str
    way_out: str = ""

    def sentence(self, found: str) -> str:
        return _sentence(found, self.why, self.way_out)


def refuse_model_runner(facts: ServingFacts, rpc_config: RPCConfig) -> None:
    """Check what `gather_facts` found.

    Raises:
        UnsupportedError: the sentence of the first row that applies.
    """
    for row in MODEL_ROWS:
        found = row.predicate(facts, rpc_config)
        if found is not None:
            raise UnsupportedError(row.sentence(found))


def gather_facts(owner: Any) -> ServingFacts:
    """The facts of a live Scheduler, or of a ModelRunner with its pools (the tree's are then unknown).

    Raises:
        SeamError: this SGLang keeps one of them elsewhere.
    """
    try:
        return _gather(owner)
    except AttributeError as error:
        raise SeamError(
            f"RPC could not read what it must check before it serves ({error}); install sglang==0.5.23, or {_OFF}"
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
        **_layer_facts(runner.model),
        total_kv_heads=model_config.get_total_num_kv_heads(),
        tp_size=get_parallel().attn_tp_size,
        page_size=runner.token_to_kv_pool_allocator.page_size,
        decode_backend=runner.decode_attention_backend_str,
        prefill_backend=runner.prefill_attention_backend_str,
        kv_pool=type(pool).__name__,
        kv_layout=getattr(pool, "kv_cache_layout", "unknown"),
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


def _layer_facts(model: Any) -> dict[str, int]:
    """Counts over the attention layers that RPC can find in the model."""
    from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

    found = [module for module in model.modules() if isinstance(module, RadixAttention)]
    decoder = [m for m in found if m.attn_type == AttentionType.DECODER and not m.is_cross_attention]
    return dict(
        decoder_layers=len(decoder),
        other_attention=len(found) - len(decoder),
        # use_irope: Llama 4's chunked-local attention, which has no window size.
        window_layers=sum(m.sliding_window_size > 0 or m.use_irope for m in decoder),
        distance_layers=sum(m.xai_temperature_len > 0 or m.pos_encoding_mode != "NONE" for m in decoder),
        capped_oddly=sum(bool(m.logit_cap) and m.logit_capping_method != "tanh" for m in decoder),
        shared_kv=len(decoder) - len({m.layer_id for m in decoder}),
        head_shapes=len({(m.tp_q_head_num, m.tp_k_head_num, m.qk_head_dim) for m in decoder}),
    )


def _if(test: Callable[[ServingFacts], Any], found: str) -> Callable[[ServingFacts, RPCConfig], str | None]:
    """Predicate of a fact; `found` is filled in from the facts, `{model}` for one."""
    return lambda facts, _config: found.format_map(vars(facts)) if test(facts) else None


MODEL_ROWS: tuple[ModelRow, ...] = (
    ModelRow(
        "not_generative",
        _if(lambda f: not f.generates, "{model} is an embedding, reward or classification model and"),
        "it generates no tokens to compress",
    ),
    ModelRow(
        "encoder_decoder",
        _if(lambda f: f.encoder_decoder, "{model} is an encoder-decoder model and"),
        "RPC scores decoder-only attention",
    ),
    ModelRow(
        "latent_attention",
        _if(lambda f: f.latent_attention, "{model} uses latent attention (MLA), which"),
        "its cache holds one compressed latent a token instead of keys and values, which RPC cannot score yet",
    ),
    ModelRow(
        "recurrent_state",
        _if(lambda f: f.recurrent_state, "{model} has recurrent layers (Mamba, linear attention), whose state"),
        "it is tracked by KV length, which compression shortens",
    ),
    ModelRow(
        "ngram_embedding",
        _if(lambda f: f.ngram_embedding, "{model} uses n-gram embeddings, which"),
        "its table of past tokens is indexed by KV length, which compression shortens",
    ),
    ModelRow(
        "mrope",
        _if(lambda f: f.mrope, "{model} uses multimodal rope (mrope), which"),
        "SGLang computes its positions from the KV length, which compression shortens",
        "add --language-model-only where the model allows it",
    ),
    ModelRow(
        "other_attention",
        _if(lambda f: f.other_attention, "{model} has {other_attention} cross-attention or encoder layers, and that"),
        "RPC scores decoder self-attention",
    ),
    ModelRow(
        "window_attention",
        _if(lambda f: f.window_layers, "{model} has {window_layers} sliding-window or chunked layers, and that"),
        "a window over KV entries would reach further back than one over tokens once entries are gone",
    ),
    ModelRow(
        "distance_attention",
        _if(lambda f: f.distance_layers, "{model} has {distance_layers} layers that weigh keys by distance, and that"),
        "distance is counted in KV entries, which compression shortens",
    ),
    ModelRow(
        "logit_capping",
        _if(lambda f: f.capped_oddly, "{model} has {capped_oddly} layers whose logit cap is no tanh, and that"),
        "RPC's scores would rank keys otherwise than the model does",
    ),
    ModelRow(
        "layers_not_found",
        _if(
            lambda f: f.decoder_layers != f.pool_layers,
            "{model}, in which RPC finds {decoder_layers} attention layers for {pool_layers} layers of KV,",
        ),
        "a layer whose queries are not seen cannot be compressed",
        "use --model-impl sglang if SGLang has this model",
    ),
    ModelRow(
        "shared_kv",
        _if(lambda f: f.shared_kv, "{model} has {shared_kv} layers that use another layer's KV, and that"),
        "each layer keeps tokens of its own choice",
    ),
    ModelRow(
        "head_shapes",
        _if(lambda f: f.head_shapes > 1, "{model} has layers of {head_shapes} different head shapes, and that"),
        "RPC records all layers' queries in one array",
    ),
    ModelRow(
        "replicated_kv_heads",
        lambda f, config: (
            f"--rpc-aggregation group with --tp-size {f.tp_size} and {f.total_kv_heads} KV heads"
            if config.aggregation == "group" and f.tp_size > f.total_kv_heads
            else None
        ),
        "ranks that hold copies of one KV head each see some of its query heads, and would keep different tokens",
        "use --rpc-aggregation all",
    ),
    ModelRow(
        "attention_backend_in_use",
        lambda f, _config: next(
            (
                f"the attention backend {backend}, which SGLang chose,"
                for backend in (f.decode_backend, f.prefill_backend)
                if backend not in ATTENTION_BACKENDS
            ),
            None,
        ),
        f"RPC is built for {', '.join(ATTENTION_BACKENDS)}",
        f"use --attention-backend {ATTENTION_BACKENDS[-1]}",
    ),
    ModelRow(
        "kv_quantization",
        _if(lambda f: f.kv_quantization != "unquantized", "KV quantization {kv_quantization}"),
        "its entries carry scales of their own, which RPC does not move",
        "use --kv-cache-dtype bfloat16",
    ),
    ModelRow(
        "kv_dtype",
        _if(lambda f: f.kv_dtype not in KV_DTYPES, "a KV cache of {kv_dtype}"),
        f"RPC scores keys of {', '.join(KV_DTYPES)}",
        "use --kv-cache-dtype bfloat16",
    ),
    ModelRow(
        "kv_layout",
        _if(lambda f: f.kv_layout != "nhd", "the KV layout {kv_layout}"),
        "RPC moves slots that lie in one piece (nhd)",
        "unset SGLANG_USE_HND_KVCACHE and SGLANG_AITER_KV_CACHE_LAYOUT",
    ),
    ModelRow(
        "kv_pool",
        _if(lambda f: f.kv_pool not in KV_POOLS, "the KV pool {kv_pool}, which SGLang built for {model},"),
        f"RPC knows how K/V lie in {', '.join(KV_POOLS)} only",
    ),
    ModelRow(
        "row_pool",
        _if(
            lambda f: f.row_pool not in ROW_POOLS or f.rows_own_more,
            "the request table {row_pool}, which carries more than KV slots,",
        ),
        "RPC would have to shorten the rest with them",
    ),
    ModelRow(
        "allocator",
        _if(lambda f: f.allocator not in ALLOCATORS, "the allocator {allocator}"),
        f"RPC frees the tails of requests through {' and '.join(ALLOCATORS)} only",
    ),
    ModelRow(
        "tree",
        _if(lambda f: f.tree is not None and f.tree not in TREES, "the prefix cache {tree}"),
        f"RPC keeps compressed KV out of {', '.join(TREES)} and knows no other",
        "remove the flag or plugin that selects it",
    ),
    ModelRow(
        "second_tier",
        _if(lambda f: f.second_tier, "a prefix cache with a second tier in host memory or an external store"),
        "KV is copied beside the stream that moves entries, so a freed slot may still be written",
        "remove the flag that attaches it",
    ),
)


# ---- one request --------------------------------------------------------------------------------------------


class Severity(Enum):
    """What to do with a request that cannot be compressed."""

    UNCOMPRESSED = "uncompressed"  #: serve it as SGLang would; the sentence is the reason in its receipt
    REJECT = "reject"  #: it asked for compression itself: HTTP 400 with the sentence


class RequestRefusal(NamedTuple):
    severity: Severity
    name: str  #: of the row
    sentence: str


@dataclass(frozen=True)
class RequestRow:
    """One feature of a request with which its KV cannot be compressed. Each is safe to serve uncompressed."""

    name: str
    predicate: Callable[[Any], str | None]  #: what the request carries; None: nothing
    why: str

    def refusal(self, given: str, asked: bool) -> RequestRefusal:
        if asked:
            sentence = (
                f"{given} does not work with RPC: {self.why}; remove {given.split('=')[0]} "
                "or send custom_params.rpc.enabled false"
            )
            return RequestRefusal(Severity.REJECT, self.name, sentence)
        return RequestRefusal(Severity.UNCOMPRESSED, self.name, f"not compressed because of {given}: {self.why}")


def refuse_request(request: Any, asked: bool | None = None) -> RequestRefusal | None:
    """Whether this request's KV can be compressed.

    Args:
        request: SGLang's GenerateReqInput (of one request or a batch), TokenizedGenerateReqInput or Req.
        asked: whether it asked for compression itself; None: as its custom_params say.

    Returns:
        None if it can, or if it switched RPC off itself; else what to do, with one sentence.
    """
    wishes = _wishes(request)
    if wishes == {False}:
        return None
    asked = True in wishes if asked is None else asked
    for row in REQUEST_ROWS:
        given = row.predicate(request)
        if given is not None:
            return row.refusal(given, asked)
    return None


def _sampling_params(request: Any) -> list[Any]:
    """A list of dicts or SamplingParams, one for all of a batch or one each."""
    params = getattr(request, "sampling_params", None)
    return [] if params is None else list(params) if isinstance(params, list | tuple) else [params]


def _get(params: Any, name: str) -> Any:
    return params.get(name) if isinstance(params, Mapping) else getattr(params, name, None)


def _wishes(request: Any) -> set[bool | None]:
    """What custom_params.rpc ask for, over the members of a batch: True, False, None where it says nothing."""
    wishes: set[bool | None] = set()
    for params in _sampling_params(request):
        custom = _get(params, "custom_params")
        options = custom.get("rpc") if isinstance(custom, Mapping) else None
        wishes.add(None if not isinstance(options, Mapping) else options.get("enabled", True) is not False)
    return wishes


def _beam(request: Any) -> str | None:
    width = max((_get(params, "beam_width") or 1 for params in _sampling_params(request)), default=1)
    return f"beam_width={width}" if width > 1 else None


def _carries(field: str) -> Callable[[Any], str | None]:
    return lambda request: field if getattr(request, field, None) not in (None, False, []) else None


REQUEST_ROWS: tuple[RequestRow, ...] = (
    RequestRow("beam_search", _beam, "beams share the entries of their common tokens, so none may move them"),
    RequestRow(
        "input_embeds",
        _carries("input_embeds"),
        "SGLang starts such a request over when memory runs out, dropping the tokens RPC has counted",
    ),
    RequestRow(
        "return_routed_experts",
        _carries("return_routed_experts"),
        "SGLang reads them back by the slots of all tokens, and compression gives slots away",
    ),
    RequestRow(
        "return_indexer_topk",
        _carries("return_indexer_topk"),
        "SGLang reads them back by the slots of all tokens, and compression gives slots away",
    ),
)


# ---- docs/limits.md -----------------------------------------------------------------------------------------

_HEAD = """# Limits

What does not work with RPC. A server with one of these switched on stops at start-up with a sentence that names it;
nothing is ever compressed wrongly, or silently not at all. `--disable-rpc` turns RPC off and lifts every one of them.
This page is generated: `python -m sglang_rpc.seams.refusals > docs/limits.md`.
"""


def limits_page() -> str:
    """The text of docs/limits.md."""
    return "\n".join(
        [
            _HEAD,
            "## Server flags and environment\n",
            *_table(
                ("name", "what", "why", "way out"),
                ((r.name, r.switches, r.why, r.way_out.rstrip(",")) for r in SERVER_ROWS),
            ),
            "\n## Models and memory pools\n",
            "Known once the model is loaded; a dash means that only `--disable-rpc` helps.\n",
            *_table(("name", "why", "way out"), ((r.name, r.why, r.way_out or "-") for r in MODEL_ROWS)),
            "\n## Single requests\n",
            "Such a request is served uncompressed and its receipt says why. If it asked for compression itself, with",
            '`custom_params: {"rpc": {...}}`, it gets HTTP 400 instead.\n',
            *_table(("name", "why"), ((r.name, r.why) for r in REQUEST_ROWS)),
            "",
        ]
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *((f"`{name}`", *rest) for name, *rest in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]


if __name__ == "__main__":
    print(limits_page(), end="")
