"""Models and memory pools that RPC cannot compress: what is known once they are built, then the table."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.architectures import Kind, flags_of
from sglang_rpc.contract.layers import decoder_layers, full_attention, is_latent, latent_attentions, window_of
from sglang_rpc.contract.refusals.row import OFF, Row, named, refuse
from sglang_rpc.contract.refusals.server import ATTENTION_BACKENDS
from sglang_rpc.contract.sglang.memory import KVPool
from sglang_rpc.contract.sglang.model import LatentAttention, ModelConfig, ModelRunner
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.sglang.server import ParallelArgs
from sglang_rpc.contract.versions import SUPPORTED
from sglang_rpc.errors import IncompatibleSGLangError
from sglang_rpc.policy.budget import reach_missed
from sglang_rpc.policy.resolve import accumulates, find_policy

#: Exactly these classes: a subclass may store K/V in another layout, or know its slots by other numbers.
KV_POOLS = ("MHATokenToKVPool", "MLATokenToKVPool")
ROW_POOLS = ("ReqToTokenPool",)
ALLOCATORS = ("PagedTokenToKVPoolAllocator", "TokenToKVPoolAllocator")
TREES = ("UnifiedRadixCache",)
KV_DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")
#: Attention backends that take the window of each layer from the layer; the others have one for all.
WINDOW_OF_LAYER = ("fa3", "torch_native")
#: Whose choice between absorbed and expanded latents RPC knows.
DEEPSEEK = "sglang.srt.models.deepseek_v2.DeepseekV2AttentionMLA"


@dataclass(frozen=True)
class ServingFacts:
    """What is known once the model and its pools are built. Counts are layers unless named otherwise.

    The defaults describe a plain model, such as a Qwen2 or Llama on one GPU.
    """

    model: str = "LlamaForCausalLM"  #: architecture
    generates: bool = True  #: False: an embedding, reward or classification model
    draft: bool = False  #: proposes tokens to another model
    diffusion: bool = False  #: rewrites blocks of tokens
    encoder_decoder: bool = False
    latent_attention: bool = False  #: MLA, and DSA which builds on it: one latent per token for all heads
    sparse_attention: bool = False  #: DSA and others: an indexer chooses the keys of each step
    recurrent_state: bool = False  #: Mamba, linear attention, short convolutions
    ngram_embedding: bool = False
    position_table: bool = False  #: rope positions of tokens to come stand in a table of the image that is drawn
    decoder_layers: int = 1  #: attention layers whose KV could be compressed
    other_attention: int = 0  #: encoder-only, bidirectional or cross attention
    window_layers: int = 0  #: sliding-window attention
    reach: int = 0  #: entries before its own that a token of these sees, at most
    other_windows: int = 0  #: layers with another window than the one that SGLang tells its attention backend
    chunked_layers: int = 0  #: chunked-local attention
    distance_layers: int = 0  #: attention that depends on the distance to a key (xAI temperature, ALiBi)
    capped_oddly: int = 0  #: attention logits capped by another function than tanh, which the scorer applies itself
    shared_kv: int = 0  #: layers that use another layer's KV
    own_dispatch: int = 0  #: latent attention that decides in another way than DeepSeek's when to expand latents
    head_shapes: int = 1  #: distinct (query heads, KV heads, head size) among the layers with full attention
    total_kv_heads: int = 1  #: of the model, not of this rank
    tp_size: int = 1  #: ranks that share the attention heads
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


def gather_facts(owner: Scheduler | ModelRunner) -> ServingFacts:
    """The facts of a live Scheduler, or of a ModelRunner with its pools (the tree's are then unknown).

    Raises IncompatibleSGLangError if this SGLang keeps one of them elsewhere.
    """
    try:
        return _gather(owner)
    except AttributeError as error:
        raise IncompatibleSGLangError(
            f"RPC could not read what it must check before it serves ({error}); install SGLang {SUPPORTED}, or {OFF}",
            "incompatible.fact_missing",
        ) from error


def _gather(owner: Scheduler | ModelRunner) -> ServingFacts:
    from sglang.srt.runtime_context import get_parallel

    scheduler = cast("Scheduler", owner) if hasattr(owner, "tp_worker") else None
    runner = cast("ModelRunner", owner) if scheduler is None else scheduler.tp_worker.model_runner
    parallel: ParallelArgs = get_parallel()
    tree = None if scheduler is None else scheduler.tree_cache
    config = facts_of_config(runner.model_config)
    return replace(
        config,
        generates=config.generates and runner.model_config.is_generation,
        latent_attention=runner.use_mla_backend,
        total_kv_heads=runner.model_config.get_total_num_kv_heads(),
        tp_size=parallel.attn_tp_size,
        decode_backend=runner.decode_attention_backend_str,
        prefill_backend=runner.prefill_attention_backend_str,
        rocm=torch.version.hip is not None,
        tree=None if tree is None else type(tree).__name__,
        second_tier=tree is not None
        and (tree.cache_controller is not None or getattr(tree, "linker", None) is not None),
        **_pool_facts(runner),
    )


def facts_of_config(model_config: ModelConfig) -> ServingFacts:
    """What a configuration tells of a model, before anything of it is built."""
    from sglang.srt.configs.model_config import is_deepseek_dsa
    from sglang.srt.mem_cache.kv_cache_builder import uses_ssm_state

    architecture = (model_config.hf_config.architectures or ["unknown"])[0]
    facts = ServingFacts(
        model=architecture,
        encoder_decoder=model_config.is_encoder_decoder,
        sparse_attention=is_deepseek_dsa(model_config.hf_config),
        recurrent_state=uses_ssm_state(model_config),
        ngram_embedding=model_config.use_ngram_embedding,
    )
    return replace(facts, **flags_of(architecture))


def _pool_facts(runner: ModelRunner) -> dict[str, Any]:
    """Of the pools and of the layers that use them. Of a pool of another kind little more than the name is read."""
    allocator, rows = runner.token_to_kv_pool_allocator, runner.req_to_token_pool
    pool = allocator.get_kvcache()
    names: dict[str, Any] = dict(
        kv_pool=type(pool).__name__,
        row_pool=type(rows).__name__,
        allocator=type(allocator).__name__,
        rows_own_more=type(rows).__name__ in ROW_POOLS and rows._aux_cache is not None,
    )
    quantization = getattr(pool, "quant_method", None)
    names["kv_quantization"] = "unquantized" if quantization is None else quantization.name
    if names["kv_pool"] not in KV_POOLS:
        layers = _layer_facts(runner, None)
        return names | layers | {"pool_layers": layers["decoder_layers"]}
    return dict(
        **names,
        **_layer_facts(runner, pool),
        kv_layout="nhd" if is_latent(pool) else getattr(pool, "kv_cache_layout", "unknown"),
        kv_dtype=str(pool.dtype).removeprefix("torch."),
        pool_layers=pool.layer_num,
    )


def _layer_facts(runner: ModelRunner, pool: KVPool | None) -> dict[str, int]:
    """Counts over the attention layers that RPC can find in the model. `pool` None: one that RPC does not know."""
    from sglang.srt.layers.radix_attention import AttentionType

    layers = decoder_layers(runner.model)
    decoder = [m for m in layers if m.attn_type == AttentionType.DECODER and not m.is_cross_attention]
    others = len(layers) - len(decoder)
    if pool is not None and is_latent(pool):  # those that read latents as they are stored
        decoder = [m for m in decoder if (m.tp_k_head_num, m.qk_head_dim) == (1, pool.kv_cache_dim)]
    windows = [window_of(m) for m in decoder if window_of(m)]
    return dict(
        decoder_layers=len(decoder),
        other_attention=others,
        window_layers=len(windows),
        reach=max(windows, default=0),
        other_windows=sum(window != runner.sliding_window_size for window in windows),
        chunked_layers=sum(m.use_irope for m in decoder),  # Llama 4's, which has no window size
        distance_layers=sum(m.xai_temperature_len > 0 or m.pos_encoding_mode != "NONE" for m in decoder),
        capped_oddly=sum(bool(m.logit_cap) and m.logit_capping_method != "tanh" for m in decoder),
        shared_kv=len(decoder) - len({m.layer_id for m in decoder}),
        own_dispatch=sum(_dispatcher(m) != DEEPSEEK for m in latent_attentions(runner.model)),
        head_shapes=len({(m.tp_q_head_num, m.tp_k_head_num, m.qk_head_dim) for m in full_attention(decoder)}),
    )


def _dispatcher(attention: LatentAttention) -> str:
    """The class whose `dispatch_attn_forward_method` this module uses."""
    for cls in type(attention).__mro__:
        if "dispatch_attn_forward_method" in vars(cls):
            return f"{cls.__module__}.{cls.__qualname__}"
    return ""


def refuse_model_config(model_config: ModelConfig, rpc_config: RPCConfig) -> None:
    """Check what a configuration tells, before weights are loaded. Raises as `refuse_model_runner`."""
    refuse_model_runner(facts_of_config(model_config), rpc_config)


def refuse_model_runner(facts: ServingFacts, rpc_config: RPCConfig) -> None:
    """Check what `gather_facts` returned. Raises UnsupportedError: the sentence of the first row that applies."""
    refuse(MODEL_ROWS, facts, rpc_config)


def _layers(count: Callable[[ServingFacts], int], what: str, why: str) -> Row[[ServingFacts, RPCConfig]]:
    return Row(lambda f, _: count(f) and f"{f.model} has {count(f)} {what}, and that", why)


MODEL_ROWS: tuple[Row[[ServingFacts, RPCConfig]], ...] = named(
    not_generative=Row(
        lambda f, _: not f.generates and f"{f.model} is an embedding, reward or classification model and",
        "it generates no tokens to compress",
    ),
    draft_model=Row(
        lambda f, _: f.draft and f"{f.model} is a draft model of speculative decoding and",
        "it proposes tokens to another model and serves none of its own",
        "use the model that it drafts for as --model-path",
    ),
    diffusion=Row(
        lambda f, _: f.diffusion and f"{f.model} is a diffusion model and",
        "it rewrites blocks of tokens and has no last R queries to score with",
    ),
    encoder_decoder=Row(
        lambda f, _: f.encoder_decoder and f"{f.model} is an encoder-decoder model and",
        "RPC scores decoder-only attention",
    ),
    recurrent_state=Row(
        lambda f, _: f.recurrent_state and f"{f.model} has recurrent layers (Mamba, linear attention), whose state",
        "it is tracked by KV length, which compression shortens",
    ),
    sparse_attention=Row(
        lambda f, _: f.sparse_attention and f"{f.model}, which has sparse attention to keys that an indexer chooses,",
        "the indexer has a key of its own for each token, which RPC would have to move with the token's KV",
    ),
    ngram_embedding=Row(
        lambda f, _: f.ngram_embedding and f"{f.model} uses n-gram embeddings, which",
        "its table of past tokens is indexed by KV length, which compression shortens",
    ),
    position_table=Row(
        lambda f, _: f.position_table and f"{f.model} draws images, at positions in a table that",
        "SGLang looks them up by the KV length, which compression shortens",
    ),
    other_attention=_layers(
        lambda f: f.other_attention, "cross-attention or encoder layers", "RPC scores decoder self-attention"
    ),
    chunked_attention=_layers(
        lambda f: f.chunked_layers,
        "layers of chunked attention",
        "its chunks begin at multiples of KV entries, which compression shortens",
    ),
    only_windows=Row(
        lambda f, _: (
            0 < f.window_layers == f.decoder_layers and f"{f.model}, whose {f.window_layers} layers all have windows,"
        ),
        "RPC scores full attention, and here no layer has it",
    ),
    window_policy=Row(
        lambda f, config: (
            f.window_layers
            and find_policy(config.policy) is None
            and f"--rpc-policy {config.policy} with {f.model}, which has sliding-window layers,"
        ),
        "it takes thoughts out of the middle, where a window layer keeps the newest entries",
        "use another --rpc-policy",
    ),
    window_attention=Row(
        lambda f, config: (
            (missed := reach_missed(config, f.reach))
            and f"{f.model} has {f.window_layers} sliding-window layers that see {missed}, and that"
        ),
        "a sliding window must see what it would see uncompressed",
        "use a longer --rpc-interval or a higher --rpc-min-kept",
    ),
    window_not_applied=Row(
        lambda f, _: next(
            (
                f"the attention backend {backend} with {f.model}, to which SGLang does not name the window of "
                f"{f.other_windows} layers,"
                for backend in (f.decode_backend, f.prefill_backend)
                if f.other_windows and backend not in WINDOW_OF_LAYER
            ),
            None,
        ),
        "a layer would see entries that its own window leaves out, and these are evicted",
        f"use --attention-backend {WINDOW_OF_LAYER[0]}",
    ),
    distance_attention=_layers(
        lambda f: f.distance_layers,
        "layers that weigh keys by distance",
        "distance is counted in KV entries, which compression shortens",
    ),
    logit_capping=_layers(
        lambda f: f.capped_oddly,
        "layers whose logit cap is not a tanh",
        "RPC's scores would rank keys in another order than the model does",
    ),
    layers_not_found=Row(
        lambda f, _: (
            f.decoder_layers != f.pool_layers
            and f"{f.model}, in which RPC finds {f.decoder_layers} attention layers for {f.pool_layers} layers of KV,"
        ),
        "RPC cannot compress a layer whose queries it does not see",
        "use --model-impl sglang if SGLang has this model",
    ),
    shared_kv=_layers(
        lambda f: f.shared_kv, "layers that use another layer's KV", "each layer keeps tokens of its own choice"
    ),
    head_shapes=Row(
        lambda f, _: f.head_shapes > 1 and f"{f.model} has layers of {f.head_shapes} different head shapes, and that",
        "RPC records all layers' queries in one array",
    ),
    own_dispatch=_layers(
        lambda f: f.own_dispatch,
        "latent attention layers of its own kind",
        "RPC knows only of DeepSeek's layers in which steps they read latents as they are stored",
    ),
    replicated_kv_heads=Row(
        lambda f, config: (
            config.aggregation == "group"
            and f.tp_size > f.total_kv_heads
            and not f.latent_attention
            and f"--rpc-aggregation group with --tp-size {f.tp_size} and {f.total_kv_heads} KV heads"
        ),
        "ranks that hold copies of one KV head each see some of its query heads, and would keep different tokens",
        "use --rpc-aggregation all",
    ),
    trace_of_split_heads=Row(
        lambda f, config: (
            config.trace is not None
            and config.aggregation == "group"
            and f.tp_size > 1
            and not f.latent_attention
            and f"--rpc-trace with --rpc-aggregation group and --tp-size {f.tp_size}"
        ),
        "each rank knows only what its own heads keep",
        "use --rpc-aggregation all, leave --rpc-trace out",
    ),
    latent_on_rocm=Row(
        lambda f, _: f.latent_attention and f.rocm and f"{f.model} on ROCm",
        "SGLang's latent attention runs other code there, against which RPC has not been checked",
    ),
    policy_on_latents=Row(
        lambda f, config: (
            f.latent_attention
            and accumulates(config.policy)
            and f"--rpc-policy {config.policy} with {f.model}, which has latent attention (MLA),"
        ),
        "prefills that expand the latents bypass the place where attention is added up",
        "use another --rpc-policy",
    ),
    policy_on_split_heads=Row(
        lambda f, config: (
            f.tp_size > (1 if f.latent_attention else f.total_kv_heads)
            and (policy := find_policy(config.policy)) is not None
            and policy.whole_groups
            and f"--rpc-policy {config.policy} with --tp-size {f.tp_size}"
        ),
        "its scores need all query heads of a KV head on one rank, and here ranks share them",
        "use another --rpc-policy",
    ),
    attention_backend_in_use=Row(
        lambda f, _: next(
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
    kv_quantization=Row(
        lambda f, _: f.kv_quantization != "unquantized" and f"KV quantization {f.kv_quantization}",
        "its entries carry scales of their own, which RPC does not move",
        "use --kv-cache-dtype bfloat16",
    ),
    kv_dtype=Row(
        lambda f, _: f.kv_dtype not in KV_DTYPES and f"a KV cache of {f.kv_dtype}",
        f"RPC scores keys of {', '.join(KV_DTYPES)}",
        "use --kv-cache-dtype bfloat16",
    ),
    kv_layout=Row(
        lambda f, _: f.kv_layout != "nhd" and f"the KV layout {f.kv_layout}",
        "RPC moves slots that lie in one piece (nhd)",
        "unset SGLANG_USE_HND_KVCACHE and SGLANG_AITER_KV_CACHE_LAYOUT",
    ),
    kv_pool=Row(
        lambda f, _: f.kv_pool not in KV_POOLS and f"the KV pool {f.kv_pool}, which SGLang built for {f.model},",
        f"RPC knows how K/V lie in {', '.join(KV_POOLS)} only",
    ),
    row_pool=Row(
        lambda f, _: (
            (f.row_pool not in ROW_POOLS or f.rows_own_more)
            and f"the request table {f.row_pool}, which carries more than KV slots,"
        ),
        "RPC would have to shorten what else it carries, and does not know how",
    ),
    allocator=Row(
        lambda f, _: f.allocator not in ALLOCATORS and f"the allocator {f.allocator}",
        f"RPC frees the tails of requests through {' and '.join(ALLOCATORS)} only",
    ),
    tree=Row(
        lambda f, _: f.tree is not None and f.tree not in TREES and f"the prefix cache {f.tree}",
        f"RPC keeps compressed KV out of {', '.join(TREES)} and knows no other",
        "remove the flag or plugin that selects it",
    ),
    second_tier=Row(
        lambda f, _: f.second_tier and "a prefix cache with a second tier in host memory or an external store",
        "KV is copied outside the stream that moves entries, so a freed slot may still be written",
        "remove the flag that attaches it",
    ),
)


def row_of(kind: Kind) -> Row[[ServingFacts, RPCConfig]] | None:
    """The row that refuses models of this kind, all or some (`kind.depends`); None: they are served."""
    return next((row for row in MODEL_ROWS if row.given(ServingFacts(**kind.facts), RPCConfig())), None)
