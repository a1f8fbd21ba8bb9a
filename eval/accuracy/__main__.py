"""`python -m eval.accuracy --task aime24 --preset paper --base-url http://127.0.0.1:30000/v1 --out FILE.jsonl`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from eval.accuracy.run import Run, run
from eval.accuracy.statistics import Report

#: What flags are where they are not given.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"samples": 8, "temperature": 0.6, "top_p": 0.95, "max_tokens": 32768},
}


def main(argv: list[str] | None = None) -> int:
    asked = _asked(vars(_parser().parse_args(argv)))
    try:
        print(show(run(asked)))
    except (EvalError, OSError) as error:
        print(f"eval.accuracy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {asked.out}", file=sys.stderr)
        return 130
    return 0


def show(found: Report) -> str:
    measured = f"{found.measure}[avg-of-{found.k}]  {found.accuracy:.3f} +- {found.error:.3f}"
    if found.measure == "pass@1":
        measured += f"   pass@{found.k}  {found.pass_at_k:.3f}"
    lines = [
        f"{found.problems} problems, {found.samples} samples",
        measured,
        *found.more,
        f"no answer {found.no_answer:.1%}, truncated {found.truncated:.1%}, looping {found.looping:.1%}",
        f"tokens {found.tokens:.0f} mean, {found.tokens_median:.0f} median",
    ]
    if found.compressed is not None and found.evicted is not None:
        lines.append(f"compressed {found.compressed:.1%} of samples; {found.evicted:.1%} of generated KV evicted")
    if found.grader_errors:
        lines.append(f"{found.grader_errors} samples count as wrong because their grader failed: see grader_error")
    return "\n".join(lines)


def positive(text: str) -> int:
    """An argparse type."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def natural(text: str) -> int:
    """An argparse type."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


def _asked(options: dict[str, Any]) -> Run:
    preset = {"samples": 1, **PRESETS.get(options.pop("preset") or "", {})}
    values: dict[str, Any] = {name: preset.get(name) if value is None else value for name, value in options.items()}
    return Run(**values)


def _rpc(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object such as '{{\"enabled\": false}}', got {text!r}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.accuracy", description="Accuracy of a served model on a task."
    )
    parser.add_argument("--task", required=True, help=", ".join(tasks.NAMES))
    parser.add_argument("--data", type=Path, metavar="FILE", help="rows, JSON lines or a list (the task's own)")
    parser.add_argument("--preset", choices=PRESETS, help="paper: 8 samples, temperature 0.6, top-p 0.95, 32K tokens")
    parser.add_argument("--base-url", default="http://127.0.0.1:30000/v1", help="OpenAI API of the server")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="samples; the same file goes on")
    parser.add_argument("--problems", type=positive, metavar="N", help="the first N (all; 300 of the reasoner's)")
    parser.add_argument("--problem-seed", type=natural, default=0, help="of those that are made up")
    parser.add_argument("--samples", type=positive, metavar="K", help="a problem (1)")
    parser.add_argument("--concurrency", type=positive, default=8, help="requests at once (8)")
    parser.add_argument("--model", help="the one the server names")
    parser.add_argument("--temperature", type=float, help="the task's")
    parser.add_argument("--top-p", type=float, help="the task's")
    parser.add_argument("--max-tokens", type=positive, help="the task's")
    parser.add_argument("--seed", type=natural, default=0, help="heeded under --enable-deterministic-inference")
    parser.add_argument("--rpc", type=_rpc, metavar="JSON", help="custom_params.rpc of every request")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(main())
