"""What is known of a model and its memory pools once they are built: the facts that the table of refusals asks for."""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from sglang_rpc.contract.architectures import flags_of
from sglang_rpc.contract.layers import (
    decoder_layers,
    full_attention,
    is_latent,
    kv_pool,
    latent_attentions,
    window_of,
)
from sglang_rpc.contract.refusals.row import OFF
from sglang_rpc.contract.sglang.memory import KVPool
from sglang_rpc.contract.sglang.model import HybridBackend, LatentAttention, ModelConfig, ModelRunner
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.sglang.server import ParallelArgs, ServerArgs, SpeculativeArgs
from sglang_rpc.contract.versions import SUPPORTED
from sglang_rpc.contract.windows import POOL, allocator_name, has_own_windows, parts_of, pool_name
from sglang_rpc.errors import IncompatibleSGLangError

#: Exactly these classes: a subclass may store K/V in another layout, or know its slots by other numbers.
KV_POOLS = ("MHATokenToKVPool", "MLATokenToKVPool", POOL)
ROW_POOLS = ("ReqToTokenPool", "HybridReqToTokenPool", "DecodeReqToTokenPool")
#: Of decode servers, whose KV comes from another server.
DECODE_ROW_POOLS = ("DecodeReqToTokenPool", "HybridMambaDecodeReqToTokenPool")
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
    other_recurrence: bool = False  #: recurrent layers alone, or beside attention of another kind than full
    ngram_embedding: bool = False
    position_table: bool = False  #: rope positions of tokens to come stand in a table of the image that is drawn
    decoder_layers: int = 1  #: attention layers whose KV could be compressed
    other_attention: int = 0  #: encoder-only, bidirectional or cross attention
    window_layers: int = 0  #: sliding-window attention
    reach: int = 0  #: entries before its own that a token of these sees, at most
    page: int = 1  #: slots of a page
    window_page: int = 1  #: slots of a page, where window layers have a pool of their own
    other_windows: int = 0  #: layers with another window than the one that SGLang tells its attention backend
    chunked_layers: int = 0  #: chunked-local attention
    distance_layers: int = 0  #: attention that depends on the distance to a key (xAI temperature, ALiBi)
    capped_oddly: int = 0  #: attention logits capped by another function than tanh, which the scorer applies itself
    shared_kv: int = 0  #: layers that use another layer's KV
    own_dispatch: int = 0  #: latent attention that decides in another way than DeepSeek's when to expand latents
    head_shapes: int = 1  #: distinct (query heads, KV heads, head size) among the layers with full attention
    total_kv_heads: int = 1  #: of the model, not of this rank
    tp_size: int = 1  #: ranks that share the attention heads
    dp_size: int = 1  #: groups of ranks, with DP attention, that attend to requests of their own
    query_heads: int = 0  #: of an attention layer on this rank, at most; 0: unknown
    total_query_heads: int = 0  #: of the model, not of this rank
    stages: int = 1  #: of the pipeline; the layers are those of one
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
    host_tier: bool = False  #: the tree keeps KV in host memory too (HiCache)
    linked: bool = False  #: the tree is linked to an external store
    speculates: bool = False  #: drafts of another model are verified
    drafts_branch: bool = False  #: rows of a request that are verified together may share a position
    drafts_in_a_line: bool = False  #: of earlier text, and SGLang takes a verify's rows to follow one another
    states_pending: bool = False  #: a verify leaves it to the next to bring recurrent states up to date

    @property
    def recurrent(self) -> bool:
        """Whether layers with recurrent states stand beside those with attention."""
        return self.row_pool not in ("ReqToTokenPool", "DecodeReqToTokenPool")


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
    facts = replace(
        config,
        generates=config.generates and runner.model_config.is_generation,
        latent_attention=runner.use_mla_backend,
        total_kv_heads=runner.model_config.get_total_num_kv_heads(),
        tp_size=parallel.attn_tp_size,
        stages=parallel.pp_size,
        dp_size=parallel.attn_dp_size,
        total_query_heads=runner.model_config.num_attention_heads or 0,
        decode_backend=runner.decode_attention_backend_str,
        prefill_backend=runner.prefill_attention_backend_str,
        rocm=torch.version.hip is not None,
        tree=None if tree is None else type(tree).__name__,
        host_tier=tree is not None and tree.cache_controller is not None,
        linked=getattr(tree, "linker", None) is not None,
        speculates=runner.server_args.speculative_algorithm is not None,
        drafts_branch=drafts_branch(runner.server_args),
        drafts_in_a_line=_drafts_in_a_line(runner.server_args),
        **_pool_facts(runner),
    )
    return replace(facts, states_pending=facts.speculates and facts.recurrent and _states_pending(runner))


def _drafts_in_a_line(server_args: ServerArgs) -> bool:
    args = speculation(server_args)
    return args.speculative_algorithm == "NGRAM" and args.speculative_eagle_topk == 1


def _states_pending(runner: ModelRunner) -> bool:
    return cast("HybridBackend", runner.attn_backend).linear_attn_backend.accept_lens_pool is not None


def drafts_branch(server_args: ServerArgs) -> bool:
    """Whether rows of a request that are verified together may share a position."""
    args = speculation(server_args)
    return args.speculative_algorithm == "NGRAM" or (args.speculative_eagle_topk or 1) > 1


def speculation(server_args: ServerArgs) -> SpeculativeArgs:
    """How a server speculates, as SGLang decided: the arguments themselves hold what was typed, in any case of letters,
    and nothing where SGLang was to choose."""
    if server_args.speculative_algorithm is None:
        return server_args
    from sglang.srt.arg_groups.overrides import resolving_view

    decided: SpeculativeArgs = resolving_view(server_args)
    return decided


def latents_of_own_kind(model: torch.nn.Module) -> int:
    """How many of its latent attentions decide in another way than DeepSeek's when to expand latents."""
    return sum(_dispatcher(attention) != DEEPSEEK for attention in latent_attentions(model))


def facts_of_config(model_config: ModelConfig) -> ServingFacts:
    """What a configuration tells of a model, before anything of it is built."""
    from sglang.srt.configs.model_config import is_deepseek_dsa

    architecture = (model_config.hf_config.architectures or ["unknown"])[0]
    facts = ServingFacts(
        model=architecture,
        encoder_decoder=model_config.is_encoder_decoder,
        sparse_attention=is_deepseek_dsa(model_config.hf_config),
        ngram_embedding=model_config.use_ngram_embedding,
    )
    return replace(facts, **flags_of(architecture))


def _pool_facts(runner: ModelRunner) -> dict[str, Any]:
    """Of the pools and of the layers that use them. Of a pool of another kind little more than the name is read."""
    allocator, rows = runner.token_to_kv_pool_allocator, runner.req_to_token_pool
    pool = kv_pool(allocator)
    names: dict[str, Any] = dict(
        kv_pool=pool_name(pool),
        row_pool=type(rows).__name__,
        allocator=allocator_name(allocator),
        rows_own_more=type(rows).__name__ in ROW_POOLS and rows._aux_cache is not None,
    )
    first = parts_of(pool)[0]
    quantization = getattr(first, "quant_method", None)
    names["kv_quantization"] = "unquantized" if quantization is None else quantization.name
    if names["kv_pool"] not in KV_POOLS:
        layers = _layer_facts(runner, None)
        return names | layers | {"pool_layers": layers["decoder_layers"]}
    return dict(
        **names,
        **_layer_facts(runner, pool),
        kv_layout="nhd" if is_latent(pool) else getattr(first, "kv_cache_layout", "unknown"),
        page=allocator.page_size,
        window_page=allocator.page_size if has_own_windows(pool) else 1,
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
        query_heads=max((m.tp_q_head_num for m in decoder), default=0),
        other_attention=others,
        window_layers=len(windows),
        reach=max(windows, default=0),
        other_windows=sum(window != runner.sliding_window_size for window in windows),
        # A layer's mark alone, as in Muse Spark, chunks nothing.
        chunked_layers=0 if runner.attention_chunk_size is None else sum(m.use_irope for m in decoder),
        distance_layers=sum(m.xai_temperature_len > 0 or m.pos_encoding_mode != "NONE" for m in decoder),
        capped_oddly=sum(bool(m.logit_cap) and m.logit_capping_method != "tanh" for m in decoder),
        shared_kv=len(decoder) - len({m.layer_id for m in decoder}),
        own_dispatch=latents_of_own_kind(runner.model),
        head_shapes=len({(m.tp_q_head_num, m.tp_k_head_num, m.qk_head_dim) for m in full_attention(decoder)}),
    )


def _dispatcher(attention: LatentAttention) -> str:
    """The class whose `dispatch_attn_forward_method` this module uses."""
    for cls in type(attention).__mro__:
        if "dispatch_attn_forward_method" in vars(cls):
            return f"{cls.__module__}.{cls.__qualname__}"
    return ""
