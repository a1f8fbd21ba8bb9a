"""What speculative decoding cannot work with beside compression, of the server's arguments and of the model. Without
drafts RPC works with these, and with `--disable-rpc` SGLang speculates with them."""

from collections.abc import Callable

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.refusals.facts import ServingFacts
from sglang_rpc.contract.refusals.row import Row, named
from sglang_rpc.contract.refusals.server import ATTENTION_BACKENDS, Arguments
from sglang_rpc.contract.windows import POOL as WINDOW_POOL
from sglang_rpc.policy import lightthinker
from sglang_rpc.policy.resolve import accumulates

#: As SGLang resolves them: NEXTN is EAGLE.
ALGORITHMS = ("EAGLE", "EAGLE3", "STANDALONE", "NGRAM")


def _row(
    name: str, why: str, way_out: str = "", off: tuple[object, ...] = (None, False, 0, 1)
) -> Row[[Arguments, RPCConfig]]:
    """Of one argument that is not at a value at which it is off; the way out is to leave it out, if there is none."""
    flag = f"--{name.replace('_', '-')}"

    def given(args: Arguments, _config: RPCConfig) -> str | None:
        value = getattr(args, name)
        if value is not True and value in off:
            return None
        return _with(args, flag if value is True else f"{flag} {value}")

    return Row(given, why, way_out or f"remove {flag}", flag)


def _with(args: Arguments, what: str) -> str:
    return f"--speculative-algorithm {args.speculative_algorithm} with {what}"


def _policy(evicts: Callable[[str], bool], why: str, which: str) -> Row[[Arguments, RPCConfig]]:
    return Row(
        lambda args, config: evicts(config.policy) and _with(args, f"--rpc-policy {config.policy}"),
        why,
        "use another --rpc-policy",
        which,
    )


SPECULATIVE_ROWS: tuple[Row[[Arguments, RPCConfig]], ...] = named(
    speculative_decoding=Row(
        lambda args, _: (
            args.speculative_algorithm not in ALGORITHMS and f"--speculative-algorithm {args.speculative_algorithm}"
        ),
        "RPC knows drafts that a model of its own proposes, and those that earlier text proposes, and has not been "
        "checked with others",
        f"use --speculative-algorithm {' or '.join(ALGORITHMS)}, remove --speculative-algorithm",
        "--speculative-algorithm",
    ),
    speculative_layers=_row("enable_multi_layer_eagle", "each layer drafts with a model and a KV pool of its own"),
    speculative_adaptive=_row("speculative_adaptive", "queries are recorded of as many rows as a step verifies"),
    speculative_rejection=_row(
        "speculative_use_rejection_sampling", "drafts are drawn by the KV length, which compression shortens"
    ),
    speculative_window=_row(
        "speculative_draft_window_size",
        "a draft would see other entries than those that a compression moves for it",
        off=(None, 0),
    ),
    speculative_watermark=_row("enable_watermark", "it notes what a step accepts before that is cut at a due date"),
    speculative_mixed_chunk=_row(
        "enable_mixed_chunk", "a mixed step decodes rows without drafts, at positions counted in KV entries"
    ),
    speculative_backend=_row(
        "speculative_draft_attention_backend",
        f"RPC is built for {', '.join(ATTENTION_BACKENDS)}, and knows where these take positions for row lengths",
        f"use one of them, say --speculative-draft-attention-backend {ATTENTION_BACKENDS[-1]}",
        off=(None, *ATTENTION_BACKENDS),
    ),
    speculative_in_pipelines=_row("pp_size", "stages relay drafts to each other, which has not been checked"),
    speculative_with_dp_attention=_row(
        "attn_dp_size", "ranks that serve other requests draft in step, which has not been checked"
    ),
    speculative_in_halves=_row("enable_two_batch_overlap", "a step that runs as two halves has not been checked"),
    speculative_in_disaggregation=_row(
        "disaggregation_mode",
        "the KV of a draft comes from the prefill server too, and has not been checked",
        "use --disaggregation-mode null",
        off=("null",),
    ),
    speculative_with_host_tier=_row(
        "enable_hierarchical_cache", "a draft's copies in host memory have not been checked with restored requests"
    ),
    speculative_reuse=Row(
        lambda args, config: config.reuse != "off" and _with(args, f"--rpc-reuse {config.reuse}"),
        "what a request takes over has not been checked with a draft's KV",
        "use --rpc-reuse off",
        "--rpc-reuse",
    ),
    speculative_gists=_policy(
        lambda policy: policy == lightthinker.NAME,
        "a thought is evicted where its gist tokens are, which no step knows before it ends",
        f"--rpc-policy {lightthinker.NAME}",
    ),
    speculative_accumulation=_policy(
        accumulates,
        "it adds up the attention of every decode step, and drafts that are rejected have some",
        "--rpc-policy h2o",
    ),
)


def _model(
    facts: Callable[[ServingFacts], object],
    what: str,
    why: str,
    which: str,
    way_out: str = "remove --speculative-algorithm",
) -> Row[[ServingFacts, RPCConfig]]:
    return Row(
        lambda f, _: facts(f) and f"--speculative-algorithm with {f.model}, which has {what},",
        why,
        way_out,
        which,
    )


def _window_of_a_branch_missed(f: ServingFacts) -> bool:
    backends = (f.prefill_backend, f.decode_backend)
    return "triton" in backends or ("fa3" in backends and f.page > 1)


SPECULATIVE_MODEL_ROWS: tuple[Row[[ServingFacts, RPCConfig]], ...] = named(
    speculative_recurrent_latents=_model(
        lambda f: f.recurrent and f.latent_attention,
        "latent attention (MLA) beside recurrent layers",
        "a verify of latents and of states together has not been checked",
        "models with latent attention (MLA) beside recurrent layers",
    ),
    speculative_latents=Row(
        lambda f, _: (
            f.latent_attention
            and f.drafts_branch
            and "flashinfer" in (f.prefill_backend, f.decode_backend)
            and f"drafts that branch with {f.model}, which has latent attention (MLA) on flashinfer,"
        ),
        "SGLang's flashinfer backend has no mask for latents: each row would see all drafts before it",
        "use --attention-backend fa3 or triton, or, of a draft model, no branches (--speculative-eagle-topk 1)",
        "drafts that branch, those of NGRAM among them, with latent attention (MLA) on flashinfer",
    ),
    speculative_states=_model(
        lambda f: f.states_pending,
        "recurrent states that a verify leaves to the next (KDA on flashinfer without a prefix tree)",
        "a retracted request's state is saved in between, when it is not yet that of its newest token",
        "models whose recurrent states the next verify brings up to date",
    ),
    speculative_states_in_a_line=_model(
        lambda f: f.recurrent and f.drafts_in_a_line,
        "recurrent layers, from earlier text of breadth 1",
        "there SGLang takes each row's state from the row before, though drafts of earlier text may branch",
        "--speculative-ngram-max-bfs-breadth 1 with recurrent layers",
        "leave out --speculative-ngram-max-bfs-breadth 1",
    ),
    speculative_windows=_model(
        lambda f: f.kv_pool == WINDOW_POOL,
        "sliding-window layers with a KV pool of their own",
        "SGLang frees what leaves a window there, and that has not been checked with steps that are cut",
        "models whose sliding-window layers have a KV pool of their own",
        "use --rpc-window-pool plain where the model can do without, remove --speculative-algorithm",
    ),
    speculative_windows_on_flashinfer=_model(
        lambda f: f.window_layers and "flashinfer" in (f.prefill_backend, f.decode_backend),
        "sliding-window layers, on flashinfer",
        "there SGLang verifies a window layer over a row's oldest entries instead of its newest, without RPC too",
        "models with sliding-window layers on flashinfer",
        "use --attention-backend fa3 or triton, remove --speculative-algorithm",
    ),
    speculative_windows_in_trees=_model(
        lambda f: f.window_layers and f.drafts_branch and _window_of_a_branch_missed(f),
        "sliding-window layers, from drafts that branch,",
        "triton counts the window of a draft by rows, not along its branch, and fa3 has it in pages of one slot alone",
        "drafts that branch (NGRAM's do), with sliding-window layers on triton, or on fa3 in pages of several slots",
        "use --attention-backend fa3 and --page-size 1, or, of a draft model, no branches (--speculative-eagle-topk 1)",
    ),
)
