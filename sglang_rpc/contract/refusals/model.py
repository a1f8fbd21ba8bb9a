"""Models and memory pools that RPC cannot compress: a table of refusals."""

from collections.abc import Callable

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.architectures import Kind
from sglang_rpc.contract.refusals.facts import DECODE_ROW_POOLS, KV_POOLS, ROW_POOLS, ServingFacts, facts_of_config
from sglang_rpc.contract.refusals.reuse import REUSE_MODEL_ROWS
from sglang_rpc.contract.refusals.row import Row, named, refuse
from sglang_rpc.contract.refusals.server import ATTENTION_BACKENDS
from sglang_rpc.contract.refusals.speculative import SPECULATIVE_MODEL_ROWS
from sglang_rpc.contract.sglang.model import ModelConfig
from sglang_rpc.contract.windows import ALLOCATOR
from sglang_rpc.contract.windows import POOL as WINDOW_POOL
from sglang_rpc.policy.budget import pages_missed, reach_missed
from sglang_rpc.policy.resolve import accumulates, find_policy

#: A subclass may free slots in another way.
ALLOCATORS = ("PagedTokenToKVPoolAllocator", "TokenToKVPoolAllocator", ALLOCATOR)
TREES = ("UnifiedRadixCache",)
KV_DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")
#: Attention backends that take the window of each layer from the layer; the others have one for all.
WINDOW_OF_LAYER = ("fa3", "torch_native")


def refuse_model_config(model_config: ModelConfig, rpc_config: RPCConfig) -> None:
    """Check what a configuration tells, before weights are loaded. Raises as `refuse_model_runner`."""
    refuse_model_runner(facts_of_config(model_config), rpc_config)


def refuse_model_runner(facts: ServingFacts, rpc_config: RPCConfig) -> None:
    """Check what `gather_facts` returned. Raises UnsupportedError: the sentence of the first row that applies."""
    refuse(MODEL_ROWS, facts, rpc_config)
    if rpc_config.reuse != "off":
        refuse(REUSE_MODEL_ROWS, facts, rpc_config)
    if facts.speculates:
        refuse(SPECULATIVE_MODEL_ROWS, facts, rpc_config)


def _layers(count: Callable[[ServingFacts], int], what: str, why: str) -> Row[[ServingFacts, RPCConfig]]:
    return Row(lambda f, _: count(f) and f"{f.model} has {count(f)} {what}, and that", why)


def _whole_or_stage(f: ServingFacts) -> str:
    return f.model if f.stages == 1 else f"a pipeline stage of {f.model}"


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
        lambda f, _: (
            (f.other_recurrence or not f.pool_layers)
            and f"{f.model}, whose recurrent layers stand alone or beside attention of another kind,"
        ),
        "RPC compresses full attention, and knows gated delta nets, KDA, Mamba 2 and short convolutions beside it",
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
            0 < f.window_layers == f.decoder_layers
            and f"{_whole_or_stage(f)}, whose {f.window_layers} layers all have windows,"
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
    window_pages=Row(
        lambda f, config: (
            (missed := pages_missed(config, f.window_page))
            and f"{f.model}, whose sliding-window layers have a KV pool of their own, of {missed},"
        ),
        "whole pages move in that pool",
        "use an --rpc-interval of which whole pages are evicted, or a smaller --page-size",
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
    heads_of_all_ranks=Row(
        lambda f, _: (
            f.dp_size > 1
            and 0 < f.query_heads * f.tp_size < f.total_query_heads
            and f"--attn-dp-size {f.dp_size} with {f.model}, which has no DP attention in SGLang,"
        ),
        "it splits its heads over all ranks, which serve different requests: its outputs are wrong without RPC, too",
        "remove --attn-dp-size (use --tp-size or --dp-size alone)",
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
    memory_of_two_kinds=Row(
        lambda f, _: (
            (flag := f"--pp-size {f.stages}" if f.stages > 1 else f.dp_size > 1 and f"--attn-dp-size {f.dp_size}")
            and (f.kv_pool == WINDOW_POOL or f.recurrent)
            and f"{flag} with {f.model}, whose layers have memory of two kinds,"
        ),
        "RPC is proven with it where all layers have one KV pool",
        "use --tp-size instead",
    ),
    transferred_kinds=Row(
        lambda f, _: (
            f.row_pool in DECODE_ROW_POOLS
            and (f.window_layers or f.recurrent)
            and f"--disaggregation-mode decode with {f.model}, whose layers are of two kinds,"
        ),
        "windows and recurrent states are sent and backed up by lengths of their own, and RPC is proven on a decode "
        "server where all layers have full attention",
        "serve it without disaggregation",
    ),
    trace_of_stages=Row(
        lambda f, config: config.trace is not None and f.stages > 1 and f"--rpc-trace with --pp-size {f.stages}",
        "each stage of the pipeline knows only what its own layers keep",
        "leave --rpc-trace out",
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
        f"RPC frees the tails of requests through {', '.join(ALLOCATORS)} only",
    ),
    tree=Row(
        lambda f, _: f.tree is not None and f.tree not in TREES and f"the prefix cache {f.tree}",
        f"RPC keeps compressed KV out of {', '.join(TREES)} and knows no other",
        "remove the flag or plugin that selects it",
    ),
    host_tier_of_two_kinds=Row(
        lambda f, _: (
            f.host_tier
            and (f.kv_pool == WINDOW_POOL or f.recurrent)
            and f"--enable-hierarchical-cache with {f.model}, whose layers have memory of two kinds,"
        ),
        "what loads the second kind back from host memory has not been checked with compressed requests",
        "remove --enable-hierarchical-cache",
    ),
    second_tier=Row(
        lambda f, _: f.linked and "a prefix cache that is linked to an external store",
        "KV is copied outside the stream that moves entries, so a freed slot may still be written",
        "remove the flag that links it",
    ),
)


def row_of(kind: Kind) -> Row[[ServingFacts, RPCConfig]] | None:
    """The row that refuses models of this kind, all or some (`kind.depends`); None: they are served."""
    return next((row for row in MODEL_ROWS if row.given(ServingFacts(**kind.facts), RPCConfig())), None)
