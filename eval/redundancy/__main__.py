"""`python -m eval.redundancy --group reasoning=far.jsonl --group prose='texts/*.txt' --out DIR`: texts against texts;
`python -m eval.redundancy --traces 'traces/*.jsonl' --out DIR`: what compressions kept against what they could have."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.accuracy.__main__ import positive
from eval.accuracy.errors import EvalError
from eval.bench import machine
from eval.redundancy import kept, plot, texts
from eval.redundancy.measure import Group, Measured, groups, measure


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        if options.traces:
            look_at_traces(options)
        else:
            compare_texts(options)
    except (EvalError, OSError) as error:
        print(f"eval.redundancy: {error}", file=sys.stderr)
        return 1
    return 0


def compare_texts(options: argparse.Namespace) -> None:
    """Raises EvalError, OSError."""
    named = _groups(options.group)
    tokens = texts.tokenizer(options.tokenizer)
    rows: list[Measured] = []
    for name, paths in named.items():
        found = [text for path in paths for text in texts.read(name, path, options.part, tokens)]
        if not found:
            raise EvalError(f"group {name} holds no text; sample some, or leave it out")
        mine = [row for text in found for row in measure(text, options.tokens, options.windows == "all")]
        short = sorted(len(text.tokens) for text in found if len(text.tokens) < options.tokens)
        if not mine:
            raise EvalError(
                f"all {len(found)} texts of group {name} are shorter than --tokens {options.tokens}: the longest has "
                f"{short[-1]} {tokens.unit}; give a smaller --tokens"
            )
        if short:
            print(f"{name}: {len(short)} of {len(found)} texts are shorter than {options.tokens} and left out")
        rows += mine
    summary = groups(rows)
    print(show(summary, options.tokens, tokens))
    options.out.mkdir(parents=True, exist_ok=True)
    write(rows, options.out / "texts.csv")
    write(summary, options.out / "summary.csv")
    how = {name: getattr(options, name) for name in ("tokens", "windows", "part")}
    _write_conditions({**how, "tokenizer": tokens.name}, named, options.out)
    for path in plot.entropies(summary, options.out, f"{options.tokens} {tokens.unit} ({tokens.name})"):
        print(path)


def look_at_traces(options: argparse.Namespace) -> None:
    """Raises EvalError, OSError."""
    paths = texts.files(options.traces)
    rows = [row for path in paths for row in kept.choices(path)]
    summary = kept.summary(rows)
    print(observe(summary))
    options.out.mkdir(parents=True, exist_ok=True)
    write(rows, options.out / "kept.csv")
    write(summary, options.out / "kept_summary.csv")
    _write_conditions({"draws": kept.DRAWS}, {"traces": paths}, options.out)
    for path in plot.repeats(summary, options.out):
        print(path)


def observe(summary: Sequence[kept.Summary]) -> str:
    lines = [
        f"{summary[0].requests} requests; tokens before the last compression's window; mean +- standard error",
        f"{'tokens':<8} {'number':>7} {'n':>2} {'repeated':>18} {'to random':>19} {'entropy, bits':>18}",
    ]
    for row in summary:
        to_random = _with_error(row.repeated_to_random, row.repeated_to_random_error, "+")
        lines.append(
            f"{row.choice:<8} {row.tokens:>7.0f} {row.n:>2} {_with_error(row.repeated, row.repeated_error):>18} "
            f"{'' if row.choice == 'random' else to_random:>19} {_with_error(row.entropy, row.entropy_error):>18}"
        )
    return "\n".join(lines)


def show(summary: Sequence[Group], length: int, tokens: texts.Tokenizer) -> str:
    lines = [
        f"n-grams of {length} {tokens.unit} ({tokens.name}), mean +- standard error over texts",
        f"{'group':<24} {'texts':>5} {'n':>2} {'entropy, bits':>18} {'different':>18}",
    ]
    for row in summary:
        lines.append(
            f"{row.group:<24} {row.texts:>5} {row.n:>2} {_with_error(row.entropy, row.error):>18} "
            f"{_with_error(row.distinct, row.distinct_error):>18}"
        )
    return "\n".join(lines)


def _with_error(value: float, error: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if math.isnan(error) else f"{value:{sign}.3f} +- {error:.3f}"


def write(rows: Iterable[Any], path: Path) -> None:
    """Dataclasses as CSV."""
    made = [asdict(row) for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(made[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in made)


def _groups(asked: Sequence[Sequence[str]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for first, *others in asked:
        name, equals, path = first.partition("=")
        if not equals or not name or not path:
            raise EvalError(f"--group must be NAME=FILE [FILE ...], got {first!r}")
        if name in found:
            raise EvalError(f"--group {name} is there twice; name all of its files behind one --group")
        found[name] = texts.files([path, *others])
    return found


def _write_conditions(how: dict[str, Any], named: dict[str, list[Path]], out: Path) -> None:
    sources = {
        name: {
            "files": len(paths),
            "sha256": texts.sha256(*paths),  # of all, one behind the other
            "said": list({json.dumps(said): said for path in paths if (said := texts.conditions(path))}.values()),
        }
        for name, paths in named.items()
    }
    said = {**how, "sources": sources, **machine.conditions()}
    (out / "conditions.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.redundancy",
        description="Entropy of the n-grams of texts: samples of eval.accuracy (.jsonl), or plain text.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--group", nargs="+", action="append", metavar=("NAME=FILE", "FILE"), help="texts of a kind")
    what.add_argument("--traces", nargs="+", metavar="FILE", help="of --rpc-trace: kept tokens against all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the tables and the plot")
    parser.add_argument("--tokenizer", metavar="DIR", help="of a local model (without: words)")
    parser.add_argument(
        "--tokens", type=positive, default=2048, metavar="N", help="of each text; shorter ones are left out (2048)"
    )
    parser.add_argument(
        "--windows", choices=("first", "all"), default="first", help="the first N tokens, or the mean of every N"
    )
    parser.add_argument("--part", choices=texts.PARTS, default="generated", help="of samples")
    return parser


if __name__ == "__main__":
    sys.exit(main())
