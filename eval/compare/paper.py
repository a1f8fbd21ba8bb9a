"""The paper's tables beside what was run with this package: `python -m eval.compare.paper --results DIR ... --out DIR`.

Reads directories that eval.compare and eval.bench.serving (or eval.bench.gpu) wrote, and writes `paper.md` and
`paper.csv`: a row for each of the authors' numbers, filled where the same model, task, P, R and c were measured.
Numbers: arXiv 2505.13866 and the tables of the official repository, read in November 2026.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.bench.presets import TIGHT
from eval.compare import written
from eval.compare.arms import FULL

NOT_RUN = "not run here"
MODELS = {"7B": "DeepSeek-R1-Distill-Qwen-7B", "QwQ": "QwQ-32B"}
SHAPES = {"7B": "qwen-7b", "QwQ": "qwq-32b"}  #: of eval.bench: the same sizes, made-up weights
TASKS = ("aime24", "livecodebench", "ifeval")
WINDOW, RATIO, INTERVALS = 32, 4, (1024, 4096)

METHOD, SPEEDS_OF = ("interval", "window", "ratio"), [1024, WINDOW, RATIO]

#: pass@1 in percent; 8 samples a problem, temperature 0.6, top-p 0.95, 32K tokens. In the order of TASKS, 7B then QwQ.
ACCURACY: dict[tuple[str, int | None], tuple[float | None, ...]] = {
    (FULL, None): (55.5, 37.6, 55.1, 79.5, 63.4, 83.9),
    ("rpc", 4096): (52.9, 35.9, 56.6, 78.3, 62.2, 82.6),
    ("rpc", 1024): (50.4, 33.5, 57.3, 78.3, 61.2, 81.7),
    ("h2o", None): (42.5, 22.5, 51.8, 75.0, 54.2, 74.3),
    ("tova", None): (42.5, 21.5, 48.8, 70.0, 43.8, 50.6),
    ("lightthinker", None): (6.7, 0.7, 25.1, None, None, None),
}

#: tok/s: 128 tokens in, P = 1024, R = 32, c = 4, batch 32, transformers' eager loop; None: out of memory.
THROUGHPUT: dict[tuple[str, int], tuple[float | None, float]] = {
    ("7B", 8192): (653.0, 709.0),
    ("7B", 16384): (504.5, 671.4),
    ("7B", 32768): (342.9, 575.2),
    ("QwQ", 8192): (174.0, 207.3),
    ("QwQ", 16384): (117.5, 188.0),
    ("QwQ", 32768): (None, 147.3),
}


@dataclass(frozen=True)
class Row:
    table: str
    model: str
    setting: str
    paper: str
    ours: str
    source: str = ""  #: the directory that `ours` comes from


def rows(results: Sequence[Path]) -> list[Row]:
    """Every number of the paper's, in its order."""
    # The largest interval last: of a policy that the paper names none for, it counts.
    measured = {key: value for _, key, value in sorted(_measured(results), key=lambda each: each[0])}
    speeds = dict(_speeds(results))
    found = []
    for m, model in enumerate(MODELS):
        for (policy, interval), values in ACCURACY.items():
            for t, task in enumerate(TASKS):
                value = values[m * len(TASKS) + t]
                if value is None:
                    continue
                ours, source = measured.get((model, task, policy, interval), (NOT_RUN, ""))
                setting = f"{task}, {policy}" + (f", P={interval}" if interval else "")
                found.append(Row("pass@1, %", MODELS[model], setting, f"{value:.1f}", ours, source))
    for (model, length), (full, rpc) in THROUGHPUT.items():
        paper = "out of memory" if full is None else f"{rpc / full:.2f}x ({full:.0f} -> {rpc:.0f})"
        ours, source = speeds.get((model, length), (NOT_RUN, ""))
        found.append(Row("tok/s, rpc to full KV", MODELS[model], f"{length} tokens out", paper, ours, source))
    return found


def _measured(results: Sequence[Path]) -> Iterator[tuple[int, tuple[str, str, str, int | None], tuple[str, str]]]:
    """P, (model, task, policy, P where the paper names one), accuracy; from directories of eval.compare."""
    for directory in results:
        if not (directory / "comparison.json").exists() or not (directory / "summary.csv").exists():
            continue
        said = written.said(directory)
        model = next((name for name, full in MODELS.items() if full == Path(said["model_path"]).name), None)
        task = said["task"].partition(":")[0]
        if model is None or task not in TASKS:
            continue
        if written.said(directory, "conditions.json")["all"].get("measure") != "pass@1":
            continue
        for arm in written.summary(directory):
            interval = int(arm["interval"])
            as_paper = interval in INTERVALS and (int(arm["window"]), float(arm["ratio"])) == (WINDOW, RATIO)
            if arm["policy"] != FULL and not as_paper:
                continue
            named = interval if (arm["policy"], interval) in ACCURACY else None
            value = f"{100 * float(arm['accuracy']):.1f} +- {100 * float(arm['error']):.1f}"
            yield interval, (model, task, arm["policy"], named), (value, str(directory))


def _speeds(results: Sequence[Path]) -> Iterator[tuple[tuple[str, int], tuple[str, str]]]:
    """(model, tokens out) -> stock and rpc at the same, tight pool, from directories of eval.bench."""
    for directory in results:
        path = directory / "results.csv"
        if not path.exists():
            continue
        with path.open() as file:
            runs = list(csv.DictReader(file))
        for model, shape in SHAPES.items():
            mine = [run for run in runs if run["model"] in (f"shape:{shape}",) or MODELS[model] in run["model"]]
            for length in {int(run["output_tokens"]) for run in mine}:
                speeds: dict[str, list[float]] = {}
                for run in mine:
                    as_paper = run["arm"] != "rpc" or [float(run[f"rpc_{name}"]) for name in METHOD] == SPEEDS_OF
                    tight = round(float(run["pool_fraction"]), 2) == TIGHT
                    if as_paper and tight and int(run["output_tokens"]) == length:
                        speeds.setdefault(run["arm"], []).append(float(run["tok_s"]))
                if "stock" in speeds and "rpc" in speeds:
                    stock, rpc = (sum(speeds[arm]) / len(speeds[arm]) for arm in ("stock", "rpc"))
                    yield (model, length), (f"{rpc / stock:.2f}x ({stock:.0f} -> {rpc:.0f})", str(directory))


def markdown(found: Sequence[Row]) -> str:
    lines = []
    for table in dict.fromkeys(row.table for row in found):
        lines += [f"### {table}", "", "| model | | paper | ours |", "|---|---|---|---|"]
        lines += [f"| {row.model} | {row.setting} | {row.paper} | {row.ours} |" for row in found if row.table == table]
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.compare.paper", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--results", type=Path, nargs="*", default=[], metavar="DIR", help="of eval.compare, eval.bench"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(argv)
    missing = [str(path) for path in options.results if not path.is_dir()]
    if missing:
        print(f"eval.compare.paper: --results needs directories, and {missing[0]} is none", file=sys.stderr)
        return 1
    try:
        found = rows(options.results)
    except (OSError, ValueError, KeyError) as error:
        print(f"eval.compare.paper: --results needs what eval.compare and eval.bench wrote: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "paper.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row.__dataclass_fields__)
        writer.writerows(vars(row).values() for row in found)
    (options.out / "paper.md").write_text(markdown(found))
    print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
