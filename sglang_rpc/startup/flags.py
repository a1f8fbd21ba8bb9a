"""The --rpc-* flags, in one parser with SGLang's own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from sglang_rpc.config import AGGREGATIONS, POOLINGS, PRESSURES, SCOPES, SCORINGS, SELECTORS, WHEN, RPCConfig
from sglang_rpc.contract.settings import attach
from sglang_rpc.contract.targets import AFTER, AROUND, COMMAND_LINE, hook
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.table import NAMES

#: flag's field in RPCConfig -> argparse settings. No defaults here: only what was given overrides --rpc-config.
_FLAGS: dict[str, dict[str, Any]] = {
    "interval": dict(type=int, metavar="P", help="generated tokens between two compressions"),
    "window": dict(type=int, metavar="R", help="newest tokens, always kept, whose attention scores the others"),
    "ratio": dict(type=float, metavar="C", help="of every P tokens, P/C are kept"),
    "kernel_size": dict(type=int, metavar="K", help="width of the pooling over neighbouring scores; odd"),
    "pooling": dict(choices=POOLINGS, help="pooling of scores before selection"),
    "aggregation": dict(choices=AGGREGATIONS, help="all: one kept set a layer; group: one per layer and KV head"),
    "selector": dict(
        choices=SELECTORS,
        help="official: the newest R-1 queries with the newest counted twice, as the authors' code; paper: the last R",
    ),
    "policy": dict(
        metavar="NAME",
        help=f"which candidates are kept: {', '.join(NAMES)}, the name that an installed package registers, or "
        "package.module:function; all but rpc are for comparison",
    ),
    "policy_seed": dict(type=int, metavar="N", help="of policies that draw lots"),
    "gist_tokens": dict(
        nargs="+", metavar="TOKEN", help="of policy lightthinker: texts or ids of the model's gist tokens, in order"
    ),
    "gist_resume": dict(metavar="TOKEN", help="of policy lightthinker: text or id of what follows them, and is kept"),
    "scope": dict(choices=SCOPES, help="think: compress only while the model thinks; all: every generated token"),
    "think_start": dict(metavar="TOKEN", help="text or token id that opens a think segment (the reasoning parser's)"),
    "think_end": dict(metavar="TOKEN", help="text or token id that closes it (the reasoning parser's)"),
    "query_slots": dict(type=int, metavar="N", help="requests whose window can be recorded at once (1%% of the pool)"),
    "when": dict(
        choices=WHEN, help="always: compress at every due date; pressure: only while the pool is under memory pressure"
    ),
    "high_watermark": dict(
        type=float, metavar="SHARE", help="share of the pool in use at which it counts as under memory pressure"
    ),
    "low_watermark": dict(type=float, metavar="SHARE", help="share at which it no longer does"),
    "pressure": dict(
        choices=PRESSURES,
        help="before a request is retracted for want of memory, compress others: off: never; early: before their due "
        "date; ratio: and, if that is not enough, at up to --rpc-max-ratio",
    ),
    "max_ratio": dict(type=float, metavar="C", help="highest ratio under --rpc-pressure ratio (4 x --rpc-ratio)"),
    "scoring": dict(
        choices=SCORINGS,
        help="triton: kernels, on a GPU; flashinfer: these, with FlashInfer's log-sum-exp; reference: PyTorch; "
        "auto: triton where it can run",
    ),
    "host_backup_gb": dict(
        type=float,
        metavar="GB",
        help="host memory, a rank, for the KV of retracted requests; 0: prefill them again",
    ),
    "trace": dict(metavar="DIR", help="write there, for each request compressed, its text and what each layer kept"),
}


@hook(
    AFTER,
    "sglang.srt.server_args.ServerArgs.add_cli_args",
    "the --rpc-* flags in one parser with SGLang's, so that --help and --config know them",
    COMMAND_LINE,
)
def add_flags(_result: Any, parser: argparse.ArgumentParser) -> None:
    """AFTER ServerArgs.add_cli_args."""
    group = parser.add_argument_group(
        "Reasoning Path Compression",
        "Compress the KV cache of what the model generates while it thinks (arXiv 2505.13866).",
    )
    defaults = RPCConfig().as_dict()
    for field, settings in _FLAGS.items():
        default = defaults[field]
        note = "" if default is None else f" (default: {default})"
        group.add_argument(f"--rpc-{field.replace('_', '-')}", **{**settings, "help": settings["help"] + note})
    group.add_argument("--rpc-config", metavar="FILE|JSON", help="all of it at once; the flags above override it")
    group.add_argument("--disable-rpc", action="store_true", help="SGLang as it is, without a single hook")


@hook(
    AROUND,
    "sglang.srt.server_args.ServerArgs.from_cli_args",
    "the flags' values, attached to the server arguments they came with",
    COMMAND_LINE,
)
def read_flags(original: Callable[..., Any], cls: Any, args: argparse.Namespace) -> Any:
    """AROUND ServerArgs.from_cli_args: the record it returns carries the RPC configuration. Raises ConfigError."""
    server_args = original(cls, args)
    attach(server_args, None if args.disable_rpc else config_from_flags(args))
    return server_args


def config_from_flags(args: argparse.Namespace) -> RPCConfig:
    """The environment's configuration, then --rpc-config, then each flag given. Raises ConfigError."""
    config = RPCConfig.from_env() or RPCConfig()
    if args.rpc_config is not None:
        try:
            config = RPCConfig.parse(args.rpc_config, config)
        except ConfigError as error:
            raise ConfigError(f"--rpc-config: {error}") from error
    given = {field: value for field in _FLAGS if (value := getattr(args, f"rpc_{field}")) is not None}
    for field in ("think_start", "think_end", "gist_resume"):
        if field in given:
            given[field] = _token(given[field])
    if "gist_tokens" in given:
        given["gist_tokens"] = [_token(text) for text in given["gist_tokens"]]
    try:
        return RPCConfig.from_mapping(given, config)
    except ConfigError as error:
        # The sentence begins with the setting's name; a user of flags knows it by its flag.
        name, _, rest = str(error).partition(" ")
        raise ConfigError(f"--rpc-{name.replace('_', '-')} {rest}") from error


def _token(text: str) -> str | int:
    return int(text) if text.isdecimal() else text
