"""Completes a server's command line for a machine that has only a CPU."""

import argparse
from typing import Any, NoReturn

from sglang_rpc.startup import cpu

_RANKS = (
    ("--tp-size", "--tensor-parallel-size", "--tp"),
    ("--pp-size", "--pipeline-parallel-size"),
    ("--dp-size", "--data-parallel-size", "--dp"),
)


def complete(argv: list[str]) -> list[str]:
    """`argv` after the flags SGLang needs on a CPU, so that whatever is given there, abbreviated or not, wins.

    SGLang puts the flags of a `--config` file before the whole command line: those of the file are left out here.
    Call before anything imports `sglang.srt`. On a machine with an accelerator, and no `--device cpu`: `argv` itself.
    """
    file = _config_file(argv)
    given = _given(argv, file)
    tp, pp, dp = (int(given[size] or 1) for size in ("tp_size", "pp_size", "dp_size"))
    if not cpu.prepare(given["device"], cpu.processes(tp, pp, dp, given["enable_dp_attention"])):
        return argv
    defaults = cpu.server_defaults()
    return [part for name, value in defaults.items() if not _names(file, name) for part in _flag(name, value)] + argv


def _flag(name: str, value: str | int | bool) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _names(file: dict[str, Any], name: str) -> bool:
    """Whether the file gives this flag; its keys become flags, which may be abbreviated like any other."""
    return any(key and name.startswith(key) for key in file)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _given(argv: list[str], file: dict[str, Any]) -> dict[str, Any]:
    """The few flags that matter here; SGLang's own parser can't be asked, importing it would be too early."""
    parser = _Parser(add_help=False)
    for names in (("--device",), *_RANKS):
        parser.add_argument(*names)
    parser.add_argument("--enable-dp-attention", action="store_true")
    from_file = [
        part
        for key, value in file.items()
        if value is not False  # a switch that is off
        for part in _flag(key, value if value is True else str(value))
    ]
    try:
        return vars(parser.parse_known_args(from_file + argv)[0])
    except ValueError:  # SGLang's parser says what is wrong, with its own usage
        return vars(parser.parse_args([]))


def _config_file(argv: list[str]) -> dict[str, Any]:
    """What the `--config` file holds. SGLang reads it only where the flag is spelled out and stands alone."""
    if "--config" not in argv[:-1]:
        return {}
    import yaml  # type: ignore[import-untyped]

    try:
        with open(argv[argv.index("--config") + 1], encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # SGLang reads the file too, and says what is wrong with it
    return {str(k).replace("-", "_"): v for k, v in content.items()} if isinstance(content, dict) else {}
