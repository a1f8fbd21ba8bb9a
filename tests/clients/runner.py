"""Runs one kit against one server and writes what became of each of its checks.

    python -m tests.clients.runner KIT URL MODEL OUT [SITE_PACKAGES]

A kit is a module of tests.clients.kits. Its checks are its functions `check_*`, or what its function `checks` returns;
each takes the target and raises where it fails. OUT gets a JSON object: check -> null, or the failure in one line.
SITE_PACKAGES is searched after this interpreter's own, for a kit that needs SGLang and a client library in one process.
"""

from __future__ import annotations

import importlib
import json
import site
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.clients.target import Target


def main(kit: str, url: str, model: str, out: str, *site_packages: str) -> None:
    for folder in site_packages:
        site.addsitedir(folder)
    module = importlib.import_module(f"tests.clients.kits.{kit}")
    target = Target(url, model)
    outcomes: dict[str, str | None] = {}
    for name, check in _checks(module, target).items():
        begin = time.monotonic()
        outcomes[name] = _failure(check, target)
        seconds = time.monotonic() - begin
        print(f"{name}, {seconds:.1f} s:", "passed" if outcomes[name] is None else outcomes[name], flush=True)
        Path(out).write_text(json.dumps(outcomes), encoding="utf-8")  # each time: what is ended keeps what it knows


def _checks(module, target: Target) -> dict[str, Callable[[Target], object]]:
    if hasattr(module, "checks"):
        return module.checks(target)
    return {name.removeprefix("check_"): check for name, check in vars(module).items() if name.startswith("check_")}


def _failure(check: Callable[[Target], object], target: Target) -> str | None:
    try:
        check(target)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
