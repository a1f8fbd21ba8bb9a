"""Refusing models and memory pools: the table, and how it is checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.refusals.facts import ServingFacts
from sglang_rpc.contract.refusals.wording import (
    ALLOCATORS,
    ATTENTION_BACKENDS,
    KV_DTYPES,
    KV_POOLS,
    ROW_POOLS,
    TREES,
    sentence,
)
from sglang_rpc.errors import UnsupportedError
from sglang_rpc.policy.resolve import accumulates, find_policy


@dataclass(frozen=True)
class ModelRow:
    """One refusal that only the built model and pools show."""

    name: str
    predicate: Callable[[ServingFacts, RPCConfig], str | None]  #: what was found; None: nothing to refuse
    why: str
    way_out: str = ""

    def sentence(self, found: str) -> str:
        return sentence(found, self.why, self.way_out)


def refuse_model_runner(facts: ServingFacts, rpc_config: RPCConfig) -> None:
    """Check what `gather_facts` found.

    Raises:
        UnsupportedError: the sentence of the first row that applies.
    """
    for row in MODEL_ROWS:
        found = row.predicate(facts, rpc_config)
        if found is not None:
            raise UnsupportedError(row.sentence(found))


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
        "own_dispatch",
        _if(lambda f: f.own_dispatch, "{model} has {own_dispatch} latent attention layers of its own kind, and that"),
        "RPC knows of DeepSeek's alone in which steps they read latents as they are stored",
    ),
    ModelRow(
        "replicated_kv_heads",
        lambda f, config: (
            f"--rpc-aggregation group with --tp-size {f.tp_size} and {f.total_kv_heads} KV heads"
            if config.aggregation == "group" and f.tp_size > f.total_kv_heads and not f.latent_attention
            else None
        ),
        "ranks that hold copies of one KV head each see some of its query heads, and would keep different tokens",
        "use --rpc-aggregation all",
    ),
    ModelRow(
        "trace_of_split_heads",
        lambda f, config: (
            f"--rpc-trace with --rpc-aggregation group and --tp-size {f.tp_size}"
            if config.trace is not None and config.aggregation == "group" and f.tp_size > 1 and not f.latent_attention
            else None
        ),
        "each rank knows only what its own heads keep",
        "use --rpc-aggregation all, or leave --rpc-trace out",
    ),
    ModelRow(
        "latent_on_rocm",
        _if(lambda f: f.latent_attention and f.rocm, "{model} on ROCm"),
        "SGLang's latent attention has ways of its own there, and RPC has not been read against them",
    ),
    ModelRow(
        "policy_on_latents",
        lambda f, config: (
            f"--rpc-policy {config.policy} with {f.model}, which has latent attention (MLA),"
            if f.latent_attention and accumulates(config.policy)
            else None
        ),
        "prefills that expand the latents pass the place where attention is added up",
        "use another --rpc-policy",
    ),
    ModelRow(
        "policy_on_split_heads",
        lambda f, config: (
            f"--rpc-policy {config.policy} with --tp-size {f.tp_size}"
            if (policy := find_policy(config.policy)) is not None
            and policy.whole_groups
            and f.tp_size > (1 if f.latent_attention else f.total_kv_heads)
            else None
        ),
        "its scores need all query heads of a KV head on one rank, and here ranks share them",
        "use another --rpc-policy",
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
