"""The --rpc-* flags, in one parser with SGLang's own. What each one is, the fields of RPCConfig say."""

import argparse
from collections.abc import Callable
from typing import Any

from sglang_rpc.config import SETTINGS, RPCConfig, flag
from sglang_rpc.contract.settings import attach
from sglang_rpc.contract.targets import AFTER, AROUND, COMMAND_LINE, hook
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.resolve import NAMES

#: The flags that are no field of RPCConfig, with their help.
CONFIG_HELP = "all of them at once, as a JSON object or a file that holds one; the single flags override it"
DISABLE_HELP = "SGLang as it is, without a single hook"


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
    defaults = RPCConfig()
    for name, setting in SETTINGS.items():
        kind = setting.kind_in(defaults)
        names = f"; built in: {', '.join(NAMES)}" if name == "policy" else ""
        text = f"{setting.help}{names} (default: {setting.unset or getattr(defaults, name)})"
        # No default here: only what was given overrides --rpc-config.
        group.add_argument(
            flag(name),
            type=kind.parse,
            choices=kind.words,
            metavar=setting.metavar,
            nargs="+" if kind.many else None,
            help=text.replace("%", "%%"),
        )
    group.add_argument("--rpc-config", metavar="FILE|JSON", help=CONFIG_HELP)
    group.add_argument("--disable-rpc", action="store_true", help=DISABLE_HELP)


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
            raise error.prefixed("--rpc-config: ") from error
    given = {name: value for name in SETTINGS if (value := getattr(args, f"rpc_{name}")) is not None}
    try:
        return RPCConfig.from_mapping(given, config)
    except ConfigError as error:
        # The sentence begins with the setting's name; a user of flags knows it by its flag.
        name, _, rest = error.sentence.partition(" ")
        raise ConfigError(f"{flag(name)} {rest}", error.code) from error
