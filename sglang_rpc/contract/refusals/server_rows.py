"""The refusals that the server's arguments and environment show: predicates, then the table."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sglang_rpc.contract.refusals.arguments import Arguments, ServerRow
from sglang_rpc.contract.refusals.wording import ATTENTION_BACKENDS


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
        "post_capture_sizing",
        "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
        _env("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING"),
        "the KV pool gets its size after the graphs are captured, and the query ring needs it before",
        "unset SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
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
