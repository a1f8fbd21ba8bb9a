"""Measure what was registered: `python -m eval.compare.registered --results DIR ...`, one server per policy for all.

Each DIR holds a `registered.json` (eval.compare.register). Measures and writes what `python -m eval.compare` would for
each of them, and goes on where it was stopped. `python -m eval.compare.verdict` judges it afterwards.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.accuracy.__main__ import positive
from eval.accuracy.errors import EvalError
from eval.compare import options, registration
from eval.compare.measure import run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.compare.registered", description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, nargs="+", required=True, metavar="DIR", help="registered folders")
    parser.add_argument("--concurrency", type=positive, help="requests at once; as eval.compare's")
    given = parser.parse_args(argv)
    try:
        comparisons = [registered(folder, given.concurrency) for folder in given.results]
    except EvalError as error:
        print(f"eval.compare.registered: {error}", file=sys.stderr)
        return 1
    return run(comparisons, "eval.compare.registered")


def registered(folder: Path, concurrency: int | None) -> argparse.Namespace:
    """The command line of eval.compare that a folder is registered for. Raises EvalError."""
    wanted = registration.wanted_in(folder)
    if wanted is None:
        raise EvalError(f"{folder} has no {registration.NAME}; register it, or measure it with eval.compare")
    at_once = [] if concurrency is None else [f"--concurrency={concurrency}"]
    return options.parser("").parse_args([*command(wanted, folder), *at_once])


def command(described: Mapping[str, Any], out: Path) -> list[str]:
    """Arguments of eval.compare for what `options.described` says of a comparison."""
    made = [f"--out={out}"]
    for name, value in described.items():
        if name == "arms" or value is None:  # the arms follow from the rest
            continue
        join = shlex.join if name == "server_flags" else lambda values: ",".join(map(str, values))
        made.append(f"--{name.replace('_', '-')}={join(value) if isinstance(value, list) else value}")
    return made


if __name__ == "__main__":
    sys.exit(main())
