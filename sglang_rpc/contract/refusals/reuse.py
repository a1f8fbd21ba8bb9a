"""What `--rpc-reuse` cannot work with, of the server's arguments and of the model. RPC without it can."""

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.refusals.facts import ServingFacts
from sglang_rpc.contract.refusals.row import Row, named
from sglang_rpc.contract.refusals.server import Arguments
from sglang_rpc.contract.windows import POOL
from sglang_rpc.policy import lightthinker

_WAY_OUT = "remove {}, use --rpc-reuse off"
_TEXT = "--rpc-reuse-text"


def _row(name: str, why: str) -> Row[[Arguments, RPCConfig]]:
    """Of a switch, or of a number of ranks that is more than one."""
    flag = f"--{name.replace('_', '-')}"

    def named_in(args: Arguments, config: RPCConfig) -> str | None:
        value = getattr(args, name)
        if not value or (value == 1 and value is not True):
            return None
        return f"--rpc-reuse {config.reuse} with {flag if value is True else f'{flag} {value}'}"

    return Row(named_in, why, _WAY_OUT.format(flag), flag)


REUSE_ROWS: tuple[Row[[Arguments, RPCConfig]], ...] = named(
    reuse_in_disaggregation=Row(
        lambda args, config: (
            args.disaggregation_mode == "decode" and f"--rpc-reuse {config.reuse} with --disaggregation-mode decode"
        ),
        "a prefill server sends the prompt's own KV, and knows no other",
        "use --rpc-reuse off",
        "--disaggregation-mode decode",
    ),
    reuse_without_tree=_row("disable_radix_cache", "later requests find compressed KV in the prefix tree"),
    reuse_without_thoughts=_row("strip_thinking_cache", "it keeps thoughts out of the prefix tree"),
    reuse_with_watermarks=_row(
        "enable_watermark", "a watermark reads the ids of the prompt, some of which stand for compressed KV"
    ),
    reuse_in_halves=_row(
        "enable_two_batch_overlap", "a step that runs as two halves has not been checked with a prompt taken over"
    ),
    reuse_in_pipelines=_row("pp_size", "stages that know other texts would prefill other parts of a prompt"),
    reuse_with_dp_attention=_row(
        "attn_dp_size", "a step of ranks that serve other requests has not been checked with a prompt taken over"
    ),
    reuse_with_host_tier=_row(
        "enable_hierarchical_cache", "compressed KV in the prefix tree has not been checked with copies in host memory"
    ),
    reuse_of_gists=Row(
        lambda _, config: (
            config.policy == lightthinker.NAME and f"--rpc-reuse {config.reuse} with --rpc-policy {config.policy}"
        ),
        "thoughts that gists stand for have not been checked in a prompt taken over",
        "use another --rpc-policy, use --rpc-reuse off",
        f"--rpc-policy {lightthinker.NAME}",
    ),
    reuse_of_text_without_tokenizer=Row(
        lambda args, config: (
            config.reuse_text
            and args.skip_tokenizer_init
            and f"--rpc-reuse {config.reuse} with {_TEXT} and --skip-tokenizer-init"
        ),
        "such a server sees no text, and ids are known as they are",
        f"remove {_TEXT}",
        f"--skip-tokenizer-init, with {_TEXT}",
    ),
    reuse_of_text_in_batches=Row(
        lambda args, config: (
            config.reuse_text
            and args.enable_tokenizer_batch_encode
            and f"--rpc-reuse {config.reuse} with {_TEXT} and --enable-tokenizer-batch-encode"
        ),
        "it tokenizes the prompts of a batch together, past the texts that are known",
        f"remove --enable-tokenizer-batch-encode, remove {_TEXT}",
        f"--enable-tokenizer-batch-encode, with {_TEXT}",
    ),
)

REUSE_MODEL_ROWS: tuple[Row[[ServingFacts, RPCConfig]], ...] = named(
    reuse_of_window_pools=Row(
        lambda f, config: (
            f.kv_pool == POOL
            and f"--rpc-reuse {config.reuse} with {f.model}, whose sliding-window layers have a KV pool of their own,"
        ),
        "the prefix tree gives up KV of windows by itself, which has not been checked for compressed text",
        "use --rpc-reuse off",
        "models whose sliding-window layers have a KV pool of their own",
    ),
    reuse_beside_recurrence=Row(
        lambda f, config: f.recurrent and f"--rpc-reuse {config.reuse} with {f.model}, which has recurrent layers,",
        "the prefix tree has no recurrent state of a compressed text, and no request can go on without one",
        "use --rpc-reuse off",
        "models with recurrent layers beside attention",
    ),
)
