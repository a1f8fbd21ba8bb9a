"""The RPC configuration on SGLang's server arguments. It travels with them into every process."""

from __future__ import annotations

from typing import Any

from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError, UnsupportedError
from sglang_rpc.policy.table import POLICIES
from sglang_rpc.seams import refusals

_ATTRIBUTE = "_rpc_config"


def config_of(server_args: Any) -> RPCConfig | None:
    """The configuration attached to these arguments; None means RPC is off."""
    return getattr(server_args, _ATTRIBUTE, None)


def attach(server_args: Any, config: RPCConfig | None) -> None:
    """Attach; None says explicitly that RPC is off, whatever the environment asks for."""
    # An underscore name that is no field: the sealed record takes it and ships it to subprocesses.
    setattr(server_args, _ATTRIBUTE, config)


def attach_and_refuse(_result: Any, server_args: Any) -> None:
    """AFTER ServerArgs.check_server_args. Raises UnsupportedError or ConfigError."""
    if not hasattr(server_args, _ATTRIBUTE):
        attach(server_args, RPCConfig.from_env())
    config = config_of(server_args)
    if config is not None:
        refusals.refuse_server_args(server_args, config)
        _refuse_text_without_tokenizer(server_args, config)
        _refuse_policy(server_args, config)


def _refuse_text_without_tokenizer(server_args: Any, config: RPCConfig) -> None:
    for name, marker in (("start", config.think_start), ("end", config.think_end)):
        if isinstance(marker, str) and server_args.skip_tokenizer_init:
            raise UnsupportedError(
                f"--rpc-think-{name} {marker!r} is text and this server has no tokenizer (--skip-tokenizer-init); "
                "give the token's id, or remove --skip-tokenizer-init"
            )


def _refuse_policy(server_args: Any, config: RPCConfig) -> None:
    policy = POLICIES.get(config.policy)
    if policy is None:
        raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, got {config.policy!r}")
    from sglang.srt.arg_groups.overrides import resolving_view

    resolved = resolving_view(server_args)
    graphs = resolved.cuda_graph_config
    on_gpu = not str(resolved.device).startswith("cpu")
    if policy.accumulates and on_gpu and (graphs is None or graphs.decode.backend != "disabled"):
        raise UnsupportedError(
            f"--rpc-policy {policy.name} does not work under CUDA graphs: it adds up the attention of every decode "
            "step, which no graph records; add --cuda-graph-backend-decode disabled"
        )
