"""Server arguments and environment variables that RPC cannot work with: predicates, then the table."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sglang_rpc.contract import versions
from sglang_rpc.contract.refusals.row import OFF, Row, named, refuse
from sglang_rpc.errors import IncompatibleSGLangError

#: Attention backends whose kernels read K/V through a per-request list of slots, any slots, in any order.
ATTENTION_BACKENDS = ("fa3", "flashinfer", "torch_native", "triton")
#: Names the app that HTTP workers import, where there are several, and the names it may have: SGLang's own, and RPC's.
APP_VARIABLE = "SGLANG_HTTP_SERVER_APP_PATH"
SGLANG_APP, HTTP_APP = "sglang.srt.entrypoints.http_server:app", "sglang_rpc.startup.http_app:app"


@dataclass(frozen=True)
class Arguments:
    """The resolved server arguments by name. Raises IncompatibleSGLangError for a name that SGLang lacks."""

    source: Any
    absent: Mapping[str, Any]  #: names that this version of SGLang lacks, with the values of a server that uses none

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self.source, name)
        except AttributeError:
            if name in self.absent:
                return self.absent[name]
            raise IncompatibleSGLangError(
                f"this SGLang's ServerArgs has no {name}, which RPC must check before it starts; "
                f"install SGLang {versions.SUPPORTED}, or {OFF}",
                "incompatible.argument_missing",
            ) from None


def resolved(server_args: Any) -> Arguments:
    """The arguments as SGLang resolved them; nothing has been spawned yet."""
    from sglang.srt.arg_groups.overrides import resolving_view

    return Arguments(resolving_view(server_args), versions.current().absent_arguments)


def refuse_server_args(server_args: Any) -> None:
    """Check the arguments as SGLang resolved them.

    Raises:
        UnsupportedError: the sentence of the first row that applies.
        IncompatibleSGLangError: this SGLang lacks an argument that has to be checked.
    """
    refuse(SERVER_ROWS, resolved(server_args))


#: Values at which a variable, or a degree of parallelism, is off.
_FALSE, _ONE = ("0", "false", "no", "n"), (0, 1)


def _field(flag: str) -> str:
    return "ep_join_mode" if flag == "--elastic-ep-join-mode" else flag.removeprefix("--").replace("-", "_")


def _given(args: Arguments, name: str, off: tuple[object, ...]) -> str | None:
    """What a user gave of a flag or variable; None if it is off. What of a variable is not clearly off counts as on."""
    if name.isupper():
        text = os.environ.get(name, "").strip()
        return None if text.lower() in ("", *off) else f"{name}={text}"
    value = getattr(args, _field(name))
    if value is None or value is False or value in off:
        return None
    return name if value is True else f"{name} {value}"


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


def _tokenizer_workers(args: Arguments) -> str | None:
    workers = _given(args, "--tokenizer-worker-num", _ONE)
    if workers is not None and APP_VARIABLE in versions.current().absent_variables:
        return f"{workers} with SGLang {versions.current().name}"
    app = _given(args, APP_VARIABLE, (SGLANG_APP, HTTP_APP))
    return None if workers is None or app is None else f"{workers} with {app}"


def _step_sync_skipped(args: Arguments) -> str | None:
    skips = _given(args, "SGLANG_SCHEDULER_SKIP_ALL_GATHER", _FALSE)
    groups = _given(args, "--attn-dp-size", _ONE)
    return None if skips is None or groups is None else f"{skips} with {groups}"


def _host_pool(args: Arguments) -> str | None:
    # Left out, SGLang would choose it for some models; RPC chooses tensors then (`contract.disaggregation`).
    if args.disaggregation_decode_host_receive_threshold < 1:
        return f"--disaggregation-decode-host-receive-threshold {args.disaggregation_decode_host_receive_threshold:g}"
    return _given(args, "--disaggregation-decode-retraction-backup", ("cpu_tensor", "none"))


def _decode_ranks(args: Arguments) -> str | None:
    ranks = _given(args, "--pp-size", _ONE) or _given(args, "--attn-dp-size", _ONE)
    return f"--disaggregation-mode decode with {ranks}" if args.disaggregation_mode == "decode" and ranks else None


def _row(
    switches: str | Mapping[str, tuple[object, ...]],
    why: str,
    way_out: str = "",
    given: Callable[[Arguments], str | None] | None = None,
) -> Row[[Arguments]]:
    """The way out is to leave the switch out, unless there is another.

    Args:
        switches: names of flags and variables; as a mapping, with the values at which each is off.
        given: what of them was given, where it is not the first that is on.
    """
    names = dict.fromkeys(switches.split(), ()) if isinstance(switches, str) else switches
    first, *others = names
    leave_out = f"unset {first}" if first.isupper() else f"remove {'the flag' if others else first}"

    def first_on(args: Arguments) -> str | None:
        return next(filter(None, (_given(args, *switch) for switch in names.items())), None)

    return Row(given or first_on, why, way_out or leave_out, ", ".join(names))


SERVER_ROWS = named(
    decoupled_drafts=_row(
        {"--decoupled-spec-role": ("null",)},
        "another server makes the drafts, and no compression reaches the KV that it makes them with",
    ),
    pd_role_switch=_row(
        "--enable-pd-role-switch",
        "a decode server compresses and a prefill server does not, and RPC is set up once, when a server starts",
    ),
    pd_offload=_row(
        "--disaggregation-decode-enable-offload-kvcache",
        "while a request decodes, pages of its output are stored under hashes of its tokens, and a compressed "
        "request's pages hold other tokens",
    ),
    pd_retraction_backup=_row(
        "--disaggregation-decode-retraction-backup --disaggregation-decode-host-receive-threshold",
        "HiCache's host pool belongs to the prefix tree and copies rows by the length of their text, and RPC is "
        "proven with tensors alone",
        "use --disaggregation-decode-retraction-backup cpu_tensor",
        given=_host_pool,
    ),
    pd_ranks=_row(
        "--disaggregation-mode --pp-size --attn-dp-size",
        "micro-batches and ranks with requests of their own share out what transfers may take of the pool, and a "
        "decode server is written for tensor parallelism alone",
        "use --tp-size on the decode server",
        given=_decode_ranks,
    ),
    encoder_only=_row("--encoder-only", "an encoder generates no tokens to compress"),
    embedding_model=_row(
        "--is-embedding --prefill-only-disable-kv-cache",
        "an embedding or prefill-only server generates no tokens to compress",
    ),
    diffusion_llm=_row(
        "--dllm-algorithm", "a diffusion model rewrites blocks of tokens and has no last R queries to score with"
    ),
    context_parallel=_row(
        {"--attn-cp-size": _ONE, "--enable-prefill-cp": (), "--dcp-size": _ONE},
        "its ranks share out a prefill's tokens, or with --dcp-size a request's KV, by position, and RPC finds and "
        "moves rows by their place in the whole",
        "remove the flag (use --tp-size instead)",
    ),
    kv_sharding=_row(
        "--enable-kv-cache-sharding --enable-dsa-cache-layer-split",
        "a rank holds only some pages or layers of a request's KV, so no rank can move all of it",
    ),
    dwdp=_row(
        {"--dwdp-size": _ONE},
        "its ranks copy weights from each other while a step runs, on streams that RPC orders nothing with",
        "remove --dwdp-size (--attn-dp-size works)",
    ),
    step_sync_skipped=_row(
        {"SGLANG_SCHEDULER_SKIP_ALL_GATHER": _FALSE, "--attn-dp-size": _ONE},
        "before each step, ranks with DP attention must agree whether it runs in a prefill graph, which RPC decides "
        "too, and with it they do not ask each other",
        "unset SGLANG_SCHEDULER_SKIP_ALL_GATHER",
        given=_step_sync_skipped,
    ),
    elastic_ep=_row(
        {"--elastic-ep-backend": ("none",), "--elastic-ep-join-mode": ()},
        "ranks may join and leave, and a compression needs every rank to take part",
    ),
    host_buffers=_row(
        {"--hicache-host-memory-mode": ("cache",)},
        "host memory then holds KV only on its way from a store to a request that waits for it, and a retracted "
        "request that RPC restores would leave it there",
        "use --hicache-host-memory-mode cache",
    ),
    lmcache=_row(
        "--enable-lmcache",
        "what a waiting request has in LMCache is loaded into slots set aside for it, and a retracted request that "
        "RPC restores would leave them there",
    ),
    flexkv=_row(
        "--enable-flexkv",
        "FlexKV has a prefix tree of its own, which takes a row's first entries for its first tokens and stores them "
        "so; in a compressed row they are not",
    ),
    external_linker=_row(
        "--enable-unified-cache-external-linker",
        "the linker moves KV to and from an external store outside the stream that moves entries",
    ),
    radix_cache_backend=_row(
        "--radix-cache-backend",
        "RPC keeps compressed KV out of SGLang's own prefix tree (UnifiedRadixCache) and knows no other",
    ),
    session_radix_cache=_row(
        "--enable-session-radix-cache",
        "a session holds on to the KV of its finished turns, and a compressed turn leaves only its prompt in the tree",
    ),
    hisparse=_row(
        "--enable-hisparse", "hierarchical sparse attention keeps its own map from token position to GPU or host memory"
    ),
    unified_memory=_row(
        "--enable-unified-memory", "its slot numbers are virtual, and its pools move entries on their own"
    ),
    page_major_layout=_row(
        "--enable-page-major-kv-layout",
        "all layers of a page lie in one buffer, and RPC keeps different tokens in each layer's own",
    ),
    hnd_layout=_row(
        {"SGLANG_USE_HND_KVCACHE": _FALSE}, "K/V of a slot lie in pieces, head by head, and RPC moves whole slots"
    ),
    # SGLang heeds it on ROCm with AITER only, and there the pool is laid out in 5-D tiles.
    vectorized_layout=_row(
        {"SGLANG_AITER_KV_CACHE_LAYOUT": ("nhd",)},
        "K/V of a slot lie in tiles shared with other slots, and RPC moves whole slots",
    ),
    kv_cache_dtype=_row(
        {"--kv-cache-dtype": ("auto", "bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2")},
        "its entries carry block scales in buffers of their own, which RPC does not move",
        "remove it, use --kv-cache-dtype fp8_e4m3",
    ),
    attention_backend=_row(
        "--attention-backend --decode-attention-backend --prefill-attention-backend",
        f"RPC is built for {', '.join(ATTENTION_BACKENDS)}, which read any list of slots and leave the queries "
        "roped where RPC records them",
        f"use one of them, say --attention-backend {ATTENTION_BACKENDS[-1]}",
        given=_attention_backend,
    ),
    device=_row(
        "--device",
        "RPC's streams, kernels and layouts are written for cuda and cpu",
        "use --device cuda or --device cpu",
        given=_device,
    ),
    mlx=_row({"SGLANG_USE_MLX": _FALSE}, "MLX has a scheduler loop and a KV pool of its own"),
    model_impl=_row(
        {"--model-impl": ("auto", "sglang")},
        "only SGLang's own model code lets RPC see each attention layer's queries",
        "use --model-impl sglang",
    ),
    fused_decode_kernel=_row(
        "--enable-nvidia-megakernel --enable-amd-monokernel",
        "one kernel runs the whole decode step, so no layer's queries can be recorded",
    ),
    torch_compile=_row(
        "--enable-torch-compile",
        "the hook that records queries decides on the host, and compiled it would repeat what it decided when it was "
        "traced",
    ),
    pd_multiplexing=_row(
        "--enable-pdmux", "prefill and decode run at once on streams of their own, and RPC orders its work after one"
    ),
    mixed_chunk_in_a_graph=_row(
        "--enable-mixed-chunk --cuda-graph-backend-prefill",
        "decode rows of a mixed step would run inside a prefill CUDA graph, where their queries cannot be recorded",
        "remove --enable-mixed-chunk, add --cuda-graph-backend-prefill disabled",
        given=_mixed_chunk_in_a_graph,
    ),
    kv_canary=_row(
        {"--kv-canary": ("none",)},
        "the canary checks that each slot still holds the token it was written for, and RPC moves entries",
    ),
    lazy_state_tracking=_row(
        {"--mamba-radix-cache-strategy": ("auto", "no_buffer", "extra_buffer")},
        "slots for recurrent states are allocated at KV lengths, which compression shortens",
        "use --mamba-radix-cache-strategy extra_buffer",
    ),
    replayed_states=_row(
        "--enable-linear-replayssm --enable-linear-replayssm-spec",
        "recurrent states are brought up to date at KV lengths, which compression shortens",
    ),
    ray=_row(
        "--use-ray",
        "Ray's scheduler actors load no SGLang plugins, so nothing would be compressed and nothing would say so",
    ),
    rust_server=_row(
        {"SGLANG_RUST_SERVER": _FALSE},
        "the Rust frontend passes no extra fields on, so responses could not say what was compressed",
    ),
    post_capture_sizing=_row(
        {"SGLANG_ENABLE_POST_CAPTURE_KV_SIZING": _FALSE},
        "the KV pool gets its size after the graphs are captured, and the query ring needs it before",
    ),
    tokenizer_workers=_row(
        f"--tokenizer-worker-num {APP_VARIABLE}",
        "each HTTP worker has RPC through the app that it imports, and here that is another one",
        f"remove --tokenizer-worker-num, unset {APP_VARIABLE}",
        given=_tokenizer_workers,
    ),
)
