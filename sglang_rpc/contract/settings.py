"""The RPC configuration on SGLang's server arguments. It travels with them into every process."""

import logging
from typing import Any

from sglang_rpc.config import RPCConfig, flag
from sglang_rpc.contract import disaggregation
from sglang_rpc.contract.refusals.model import refuse_model_config
from sglang_rpc.contract.refusals.reuse import REUSE_ROWS
from sglang_rpc.contract.refusals.row import refuse
from sglang_rpc.contract.refusals.server import refuse_server_args, resolved
from sglang_rpc.contract.refusals.speculative import SPECULATIVE_ROWS
from sglang_rpc.contract.sglang.server import ServerArgs
from sglang_rpc.contract.targets import AFTER, hook
from sglang_rpc.errors import ConfigError, UnsupportedError
from sglang_rpc.policy import lightthinker
from sglang_rpc.policy.resolve import accumulates, require_policy
from sglang_rpc.trace.writer import check_folder

logger = logging.getLogger(__name__)

_ATTRIBUTE = "_rpc_config"
#: Of a prefill server, which has RPC off: what the options of requests must suit all the same.
_CHECKED = "_rpc_options"


def config_of(server_args: ServerArgs) -> RPCConfig | None:
    """The configuration attached to these arguments; None means RPC is off."""
    return getattr(server_args, _ATTRIBUTE, None)


def options_of(server_args: ServerArgs) -> RPCConfig | None:
    """The configuration that the options of requests are checked against; None where nobody looks at them.

    A prefill server checks them too: what the decode server refuses would be prefilled, and wait to be fetched.
    """
    return config_of(server_args) or getattr(server_args, _CHECKED, None)


def intended_config(server_args: ServerArgs) -> RPCConfig | None:
    """What `config_of` will be once the arguments are checked. Raises ConfigError."""
    return config_of(server_args) if hasattr(server_args, _ATTRIBUTE) else RPCConfig.from_env()


def attach(server_args: ServerArgs, config: RPCConfig | None) -> None:
    """Attach; None says explicitly that RPC is off, whatever the environment asks for."""
    # An underscore name that is no field: the sealed record takes it and ships it to subprocesses.
    setattr(server_args, _ATTRIBUTE, config)


@hook(
    AFTER,
    "sglang.srt.server_args.ServerArgs.check_server_args",
    "the last word on the arguments before a process is spawned: attach the RPC configuration, refuse what it cannot "
    "work with",
)
def attach_and_refuse(_result: Any, server_args: ServerArgs) -> None:
    """AFTER ServerArgs.check_server_args. Raises UnsupportedError or ConfigError."""
    if not hasattr(server_args, _ATTRIBUTE):
        attach(server_args, RPCConfig.from_env())
    config = config_of(server_args)
    if config is not None and disaggregation.only_prefills(server_args):
        attach(server_args, None)
        setattr(server_args, _CHECKED, config)
        logger.warning("RPC: nothing is compressed on a prefill server; give the decode server the same --rpc-* flags")
        return
    if config is not None:
        disaggregation.choose_backup(server_args)
        _refuse_model(server_args, config)
        refuse_server_args(server_args)
        _refuse_text_without_tokenizer(server_args, config)
        _refuse_policy(server_args, config)
        if resolved(server_args).speculative_algorithm is not None:
            refuse(SPECULATIVE_ROWS, resolved(server_args), config)
        if config.reuse != "off":
            refuse(REUSE_ROWS, resolved(server_args), config)
        if config.trace is not None:
            check_folder(config.trace)


def _refuse_model(server_args: ServerArgs, config: RPCConfig) -> None:
    """Before the server's rows: for a model that RPC cannot serve SGLang may have chosen flags that they refuse."""
    from sglang.srt.arg_groups.overrides import model_config_of

    refuse_model_config(model_config_of(server_args), config)


def _refuse_text_without_tokenizer(server_args: ServerArgs, config: RPCConfig) -> None:
    named = [(name, getattr(config, name)) for name in ("think_start", "think_end", "gist_resume")]
    for name, token in [*named, *(("gist_tokens", token) for token in config.gist_tokens or ())]:
        if isinstance(token, str) and server_args.skip_tokenizer_init:
            raise UnsupportedError(
                f"{flag(name)} {token!r} is text and this server has no tokenizer (--skip-tokenizer-init); "
                "give the token's id, or remove --skip-tokenizer-init",
                "unsupported.text_without_tokenizer",
            )


def _refuse_policy(server_args: ServerArgs, config: RPCConfig) -> None:
    require_policy(config.policy)
    _refuse_gists(config)
    from sglang.srt.arg_groups.overrides import resolving_view

    resolved: ServerArgs = resolving_view(server_args)
    if accumulates(config.policy) and resolved.disaggregation_mode == "decode":
        raise UnsupportedError(
            f"--rpc-policy {config.policy} does not work with --disaggregation-mode decode: it adds up the attention "
            "of every decode step, and SGLang does not back the sums up when it retracts a request; use another "
            "--rpc-policy",
            "unsupported.policy_on_decode_server",
        )
    if accumulates(config.policy) and resolved.enable_two_batch_overlap:
        raise UnsupportedError(
            f"--rpc-policy {config.policy} does not work with --enable-two-batch-overlap: it adds up the attention "
            "of whole steps, and a step runs as two halves; remove --enable-two-batch-overlap",
            "unsupported.policy_under_two_batch_overlap",
        )
    graphs = resolved.cuda_graph_config
    on_gpu = not str(resolved.device).startswith("cpu")
    if accumulates(config.policy) and on_gpu and (graphs is None or graphs.decode.backend != "disabled"):
        raise UnsupportedError(
            f"--rpc-policy {config.policy} does not work under CUDA graphs: it adds up the attention of every decode "
            "step, which no graph records; add --cuda-graph-backend-decode disabled",
            "unsupported.policy_under_cuda_graphs",
        )


#: What policy lightthinker, which keeps no budget and scores nothing, has no use for.
_WITHOUT_BUDGET = (
    *("interval", "window", "ratio", "kernel_size", "pooling", "aggregation", "selector", "policy_seed"),
    *("query_slots", "when", "high_watermark", "low_watermark", "pressure", "max_ratio"),
)


def _refuse_gists(config: RPCConfig) -> None:
    """Raises ConfigError where gist tokens and policy do not go together."""
    if config.policy != lightthinker.NAME:
        if config.gist_tokens is not None or config.gist_resume is not None:
            raise ConfigError(
                f"gist_tokens and gist_resume are policy {lightthinker.NAME}'s, and the policy is {config.policy}; "
                f"leave them out, or use --rpc-policy {lightthinker.NAME}",
                "config.gist_tokens",
            )
        return
    if config.gist_tokens is None:
        raise ConfigError(
            f"policy {lightthinker.NAME} needs the model's gist tokens; name them with --rpc-gist-tokens",
            "config.gist_tokens",
        )
    usual = RPCConfig()
    for name in _WITHOUT_BUDGET:
        if getattr(config, name) != getattr(usual, name):
            raise ConfigError(
                f"policy {lightthinker.NAME} evicts a thought when its gist tokens are there, and so has no {name}; "
                f"leave {flag(name)} out",
                f"config.{name}",
            )
