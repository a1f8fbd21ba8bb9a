"""Policies, ratios and intervals on one task: `python -m eval.compare --model-path DIR --task reasoner:far --out DIR`.

One server a policy; ratio and interval are sent with each request. Every arm solves the same problems, so differences
to the full KV cache are taken problem by problem. Writes a file of samples an arm, `comparison.json` (what all have in
common), `summary.csv`, `problems.csv`, `conditions.json` and the plot; the same command goes on where it was stopped,
with more policies, ratios, intervals or problems too.

What was registered is measured, one server a policy for all its folders, by `python -m eval.compare.registered`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

from eval.accuracy.errors import EvalError
from eval.bench.errors import BenchError
from eval.compare import options
from eval.compare.measure import claim, finish, measure


def main(argv: list[str] | None = None) -> int:
    return run([options.parser(__doc__.partition("\n")[0]).parse_args(argv)], "eval.compare")


def run(comparisons: Sequence[argparse.Namespace], name: str) -> int:
    """Measures and writes each; returns the exit status of the command `name`."""
    # A server has a session of its own: whoever ends this ends it too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed: list[str] = []
    try:
        for asked in comparisons:
            claim(asked)
        failed += measure(comparisons)
        for asked in comparisons:
            finish(asked)
    except (EvalError, BenchError, OSError) as error:
        failed.append(str(error))
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {', '.join(str(a.out) for a in comparisons)}", file=sys.stderr)
        return 130
    for sentence in failed:
        print(f"{name}: {sentence}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
