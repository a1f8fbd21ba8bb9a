"""Server arguments and environment variables that RPC cannot work with: predicates, then the table."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sglang_rpc.contract import versions
from sglang_rpc.contract.refusals.row import OFF, Row, refuse
from sglang_rpc.errors import IncompatibleSGLangError

#: Attention backends whose kernels read K/V through a per-request list of slots, any slots, in any order.
ATTENTION_BACKENDS = ("fa3", "flashinfer", "torch_native", "triton")


class Arguments:
    """The resolved server arguments by name. Raises IncompatibleSGLangError for a name that SGLang lacks.

    `absent`: the names that this version of SGLang is known to lack, with the values of a server that uses none.
    """

    def __init__(self, source: Any, absent: Mapping[str, Any]):
        self._source = source
        self._absent = absent

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._source, name)
        except AttributeError:
            if name in self._absent:
                return self._absent[name]
            raise IncompatibleSGLangError(
                f"this SGLang's ServerArgs has no {name}, which RPC must check before it starts; "
                f"install SGLang {versions.SUPPORTED}, or {OFF}",
                "incompatible.argument_missing",
            ) from None


def refuse_server_args(server_args: Any) -> None:
    """Check the arguments as SGLang resolved them; nothing has been spawned yet.

    Raises:
        UnsupportedError: the sentence of the first row that applies.
        IncompatibleSGLangError: this SGLang lacks an argument that has to be checked.
    """
    from sglang.srt.arg_groups.overrides import resolving_view

    refuse_arguments(resolving_view(server_args), versions.current().absent_arguments)


def refuse_arguments(arguments: Any, absent: Mapping[str, Any] = MappingProxyType({})) -> None:
    """As `refuse_server_args`, on an object whose attributes are the final values. Needs no SGLang."""
    refuse(SERVER_ROWS, Arguments(arguments, absent))


@dataclass(frozen=True)
class _Switch:
    """Flags or variables as a user knows them, and what of them was given; None: nothing that is in the way."""

    names: tuple[str, ...]
    given: Callable[[Arguments], str | None]

    def __or__(self, other: _Switch) -> _Switch:
        return _Switch(self.names + other.names, lambda args: self.given(args) or other.given(args))


def _field(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _on(*flags: str) -> _Switch:
    """One of these is on: `--enable-x` is the argument `enable_x`."""
    return _Switch(flags, lambda args: next((flag for flag in flags if getattr(args, _field(flag))), None))


def _above_one(flag: str) -> _Switch:
    """A degree of parallelism, off at 1."""

    def given(args: Arguments) -> str | None:
        degree = getattr(args, _field(flag))
        return f"{flag} {degree}" if degree > 1 else None

    return _Switch((flag,), given)


def _set(flag: str, *off: Any, field: str | None = None) -> _Switch:
    """An option, off at None and at the values named."""

    def given(args: Arguments) -> str | None:
        value = getattr(args, field or _field(flag))
        return None if value is None or value in off else f"{flag} {value}"

    return _Switch((flag,), given)


def _env(name: str, *off: str) -> _Switch:
    """An environment variable; what is not clearly off counts as on."""

    def given(_args: Arguments) -> str | None:
        value = os.environ.get(name, "").strip()
        return None if value.lower() in ("", *off) else f"{name}={value}"

    return _Switch((name,), given)


_FALSE = ("0", "false", "no", "n")


def _device(args: Arguments) -> str | None:
    # ROCm is "cuda" too. "cuda:1" is not a value SGLang documents, but it splits it the same way.
    value = str(args.device).split(":", 1)[0]
    return None if args.device is None or value in ("cuda", "cpu") else f"--device {args.device}"


def _attention_backend(args: Arguments) -> str | None:
    # The two narrower flags win over the wide one, phase by phase; None means SGLang has not chosen yet.
    for flag in ("--decode-attention-backend", "--prefill-attention-backend", "--attention-backend"):
        value = getattr(args, _field(flag))
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


def _row(name: str, switch: _Switch, why: str, way_out: str = "") -> Row[[Arguments]]:
    """The way out is to leave the switch out, unless there is another."""
    first, *others = switch.names
    leave_out = f"unset {first}" if first.isupper() else f"remove {'the flag' if others else first}"
    return Row(name, switch.given, why, way_out or leave_out, ", ".join(switch.names))


SERVER_ROWS: tuple[Row[[Arguments]], ...] = (
    _row(
        "speculative_decoding",
        _set("--speculative-algorithm") | _set("--decoupled-spec-role", "null"),
        "draft tokens are allocated and rolled back by lengths that compression changes under them",
    ),
    _row(
        "pd_disaggregation",
        _set("--disaggregation-mode", "null") | _on("--enable-pd-role-switch"),
        "KV is handed between servers by token position, and transfers run outside the stream that moves entries",
    ),
    _row("encoder_only", _on("--encoder-only"), "an encoder generates no tokens to compress"),
    _row(
        "embedding_model",
        _on("--is-embedding", "--prefill-only-disable-kv-cache"),
        "an embedding or prefill-only server generates no tokens to compress",
    ),
    _row(
        "diffusion_llm",
        _set("--dllm-algorithm"),
        "a diffusion model rewrites blocks of tokens and has no last R queries to score with",
    ),
    _row(
        "pipeline_parallel",
        _above_one("--pp-size"),
        "a pipeline keeps several micro-batches in flight, and RPC orders its work after one",
        "remove --pp-size (use --tp-size instead)",
    ),
    _row(
        "context_parallel",
        _above_one("--attn-cp-size") | _on("--enable-prefill-cp") | _above_one("--dcp-size"),
        "a request's KV is spread over ranks by token position, so no rank can score or move all of it",
        "remove the flag (use --tp-size instead)",
    ),
    _row(
        "kv_sharding",
        _on("--enable-kv-cache-sharding", "--enable-dsa-cache-layer-split"),
        "a rank holds only some pages or layers of a request's KV, so no rank can move all of it",
    ),
    _row(
        "dp_attention",
        # --dwdp-size and the old --dp-size N --enable-dp-attention both resolve to attn_dp_size.
        _above_one("--dwdp-size") | _above_one("--attn-dp-size") | _on("--enable-dp-attention"),
        "its ranks turn decode steps into prefill steps to keep pace with each other, and RPC records queries in "
        "decode steps",
        "remove the flag (--tp-size and --dp-size replicas work)",
    ),
    _row(
        "elastic_ep",
        _set("--elastic-ep-backend", "none") | _set("--elastic-ep-join-mode", field="ep_join_mode"),
        "ranks may join and leave, and a compression needs every rank to take part",
    ),
    _row(
        "hierarchical_cache",
        _on("--enable-hierarchical-cache"),
        "KV is copied between GPU and host outside the stream that moves entries, so a freed slot may still be written",
        "remove --enable-hierarchical-cache (--enable-hicache)",
    ),
    _row(
        "lmcache",
        _on("--enable-lmcache"),
        "LMCache stores KV under token ids that a compressed request's slots no longer match",
    ),
    _row(
        "flexkv",
        _on("--enable-flexkv"),
        "FlexKV stores KV under token ids that a compressed request's slots no longer match",
    ),
    _row(
        "external_linker",
        _on("--enable-unified-cache-external-linker"),
        "the linker moves KV to and from an external store outside the stream that moves entries",
    ),
    _row(
        "radix_cache_backend",
        _set("--radix-cache-backend"),
        "RPC keeps compressed KV out of SGLang's own prefix tree (UnifiedRadixCache) and knows no other",
    ),
    _row(
        "streaming_session",
        _on("--enable-streaming-session"),
        "a streaming session hands a finished turn's row to the next turn and takes its KV length for a token count",
    ),
    _row(
        "session_radix_cache",
        _on("--enable-session-radix-cache"),
        "a session holds on to the KV of its finished turns, and a compressed turn leaves only its prompt in the tree",
    ),
    _row(
        "hisparse",
        _on("--enable-hisparse"),
        "hierarchical sparse attention keeps its own map from token position to GPU or host memory",
    ),
    _row(
        "unified_memory",
        _on("--enable-unified-memory"),
        "its slot numbers are virtual, and its pools move entries on their own",
    ),
    _row(
        "page_major_layout",
        _on("--enable-page-major-kv-layout"),
        "all layers of a page lie in one buffer, and RPC keeps different tokens in each layer's own",
    ),
    _row(
        "hnd_layout",
        _env("SGLANG_USE_HND_KVCACHE", *_FALSE),
        "K/V of a slot lie in pieces, head by head, and RPC moves whole slots",
    ),
    _row(
        "vectorized_layout",
        # SGLang heeds it on ROCm with AITER only, and there the pool is laid out in 5-D tiles.
        _env("SGLANG_AITER_KV_CACHE_LAYOUT", "nhd"),
        "K/V of a slot lie in tiles shared with other slots, and RPC moves whole slots",
    ),
    _row(
        "kv_cache_dtype",
        _set("--kv-cache-dtype", "auto", "bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2"),
        "its entries carry block scales in buffers of their own, which RPC does not move",
        "remove it, use --kv-cache-dtype fp8_e4m3",
    ),
    _row(
        "attention_backend",
        _Switch(
            ("--attention-backend", "--decode-attention-backend", "--prefill-attention-backend"), _attention_backend
        ),
        f"RPC is built for {', '.join(ATTENTION_BACKENDS)}, which read any list of slots and leave the queries "
        "roped where RPC records them",
        f"use one of them, say --attention-backend {ATTENTION_BACKENDS[-1]}",
    ),
    _row(
        "device",
        _Switch(("--device",), _device),
        "RPC's streams, kernels and layouts are written for cuda and cpu",
        "use --device cuda or --device cpu",
    ),
    _row("mlx", _env("SGLANG_USE_MLX", *_FALSE), "MLX has a scheduler loop and a KV pool of its own"),
    _row(
        "model_impl",
        _set("--model-impl", "auto", "sglang"),
        "only SGLang's own model code lets RPC see each attention layer's queries",
        "use --model-impl sglang",
    ),
    _row(
        "fused_decode_kernel",
        _on("--enable-nvidia-megakernel", "--enable-amd-monokernel"),
        "one kernel runs the whole decode step, so no layer's queries can be recorded",
    ),
    _row(
        "torch_compile",
        _on("--enable-torch-compile"),
        "the compiler would trace, or drop, the hook that records queries",
    ),
    _row(
        "two_batch_overlap",
        _on("--enable-two-batch-overlap"),
        "a step runs as two halves at once, and RPC records queries of whole steps",
    ),
    _row(
        "pd_multiplexing",
        _on("--enable-pdmux"),
        "prefill and decode run at once on streams of their own, and RPC orders its work after one",
    ),
    _row(
        "mixed_chunk_in_a_graph",
        _Switch(("--enable-mixed-chunk", "--cuda-graph-backend-prefill"), _mixed_chunk_in_a_graph),
        "decode rows of a mixed step would run inside a prefill CUDA graph, where their queries cannot be recorded",
        "remove --enable-mixed-chunk, add --cuda-graph-backend-prefill disabled",
    ),
    _row(
        "kv_canary",
        _set("--kv-canary", "none"),
        "the canary checks that each slot still holds the token it was written for, and RPC moves entries",
    ),
    _row(
        "ray",
        _on("--use-ray"),
        "Ray's scheduler actors load no SGLang plugins, so nothing would be compressed and nothing would say so",
    ),
    _row(
        "rust_server",
        _env("SGLANG_RUST_SERVER", *_FALSE),
        "the Rust frontend passes no extra fields on, so responses could not say what was compressed",
    ),
    _row(
        "post_capture_sizing",
        _env("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING", *_FALSE),
        "the KV pool gets its size after the graphs are captured, and the query ring needs it before",
    ),
    _row(
        "tokenizer_workers",
        _above_one("--tokenizer-worker-num"),
        "extra HTTP workers load no SGLang plugins, so they would neither check a request's options nor add its "
        "receipt",
    ),
)
