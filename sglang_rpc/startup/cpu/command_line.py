"""Completes a server's command line for a machine that has only a CPU."""

from __future__ import annotations

import argparse
from typing import Any

from sglang_rpc.startup import cpu

_RANKS = (("--tp-size", "--tensor-parallel-size", "--tp"), ("--dp-size", "--data-parallel-size", "--dp"))


def complete(argv: list[str]) -> list[str]:
    """`argv` with the flags SGLang needs on a CPU, for those not given there or in its `--config` file.

    Call before anything imports `sglang.srt`. On a machine with an accelerator, and no `--device cpu`: `argv` itself.
    """
    given = _given(argv)
    ranks = int(given["tp_size"] or 1) * int(given["dp_size"] or 1)
    if not cpu.prepare(given["device"], ranks):
        return argv
    missing = {name: value for name, value in cpu.server_defaults().items() if given[name] is None}
    return argv + [part for name, value in missing.items() for part in _flag(name, value)]


def _flag(name: str, value: str | int | bool) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _given(argv: list[str]) -> dict[str, Any]:
    """The few flags that matter here; SGLang's own parser can't be asked, importing it would be too early."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--device", "--attention-backend", "--sampling-backend", "--max-total-tokens"):
        parser.add_argument(name)
    parser.add_argument("--sleep-on-idle", action="store_const", const=True)
    for names in _RANKS:
        parser.add_argument(*names)
    known, _ = parser.parse_known_args(argv)
    values = vars(known)
    from_file = _from_file(known.config)
    return {name: from_file.get(name) if value is None else value for name, value in values.items()}


def _from_file(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    import yaml  # type: ignore[import-untyped]

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, yaml.YAMLError):
        return {}  # SGLang reads the file too, and says what is wrong with it
    return {str(k).replace("-", "_"): v for k, v in content.items()} if isinstance(content, dict) else {}
