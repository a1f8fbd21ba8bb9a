"""Policies, ratios and intervals on one task: `python -m eval.compare --model-path DIR --task reasoner:far --out DIR`.

One server a policy; ratio and interval are sent with each request. Every arm solves the same problems, so differences
to the full KV cache are taken problem by problem. Writes a file of samples an arm, `comparison.json` (what all have in
common), `summary.csv`, `problems.csv`, `conditions.json` and the plot; the same command goes on where it was stopped,
with more policies, ratios, intervals or problems too.

What was registered is measured, one server a policy for all its folders, by `python -m eval.compare.registered`.
"""

from __future__ import annotations

import sys

from eval.compare import options
from eval.compare.measure import run


def main(argv: list[str] | None = None) -> int:
    return run([options.parser(__doc__.partition("\n")[0]).parse_args(argv)], "eval.compare")


if __name__ == "__main__":
    sys.exit(main())
