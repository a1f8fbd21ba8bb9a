"""Policies, ratios and intervals on one task: `python -m eval.compare --model-path DIR --task reasoner:far --out DIR`.

One server a policy; ratio and interval are sent with each request. Every arm solves the same problems, so differences
to the full KV cache are taken problem by problem. Writes a file of samples an arm, `comparison.json` (what all have in
common), `summary.csv` and the plot; the same command goes on where it was stopped, with more policies, ratios,
intervals or problems too.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.accuracy import tasks
from eval.accuracy.__main__ import natural, positive
from eval.accuracy.errors import EvalError
from eval.accuracy.run import Run, run
from eval.accuracy.statistics import paired, report
from eval.accuracy.store import read
from eval.bench import machine, server
from eval.bench.errors import BenchError
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError

FULL = "full"
MODULE = "sglang_rpc.launch_server"
COLUMNS = (
    *("arm", "policy", "interval", "window", "ratio", "problems", "samples", "accuracy", "error"),
    *("to_full", "to_full_error", "no_answer", "truncated", "looping", "tokens", "held_share", "tok_s"),
)


@dataclass(frozen=True)
class Arm:
    policy: str  #: or `full`: nothing is evicted
    interval: int
    window: int
    ratio: float

    @property
    def name(self) -> str:
        return FULL if self.policy == FULL else f"{self.policy}-P{self.interval}-R{self.window}-c{self.ratio:g}"

    @property
    def rpc(self) -> dict[str, Any]:
        """custom_params.rpc of its requests."""
        if self.policy == FULL:
            return {"enabled": False}
        return {"interval": self.interval, "window": self.window, "ratio": self.ratio}


def arms(policies: Sequence[str], intervals: Sequence[int], window: int, ratios: Sequence[float]) -> list[Arm]:
    """Full first; a policy's arms stand together."""
    made = [Arm(p, interval, window, ratio) for p in policies for interval in intervals for ratio in ratios]
    return [Arm(FULL, max(intervals), window, min(ratios)), *made]


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    every = arms(options.policies, options.intervals, options.window, options.ratios)
    # A server has a session of its own: whoever ends this ends it too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed, rows = [], []
    try:
        _claim(options)
        for policy in dict.fromkeys(arm.policy for arm in every):
            try:
                _measure([arm for arm in every if arm.policy == policy], options)
            except (EvalError, BenchError) as error:
                failed.append(f"{policy}: {error}")
        rows = summary(every, options.out, _problems(options), options.samples)
    except (EvalError, BenchError, OSError) as error:
        failed.append(str(error))
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {options.out}", file=sys.stderr)
        return 130
    if rows:
        write(rows, options.out / "summary.csv")
        print(show(rows))
        for path in plot(rows, options.out):
            print(path)
    for sentence in failed:
        print(f"eval.compare: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _claim(options: argparse.Namespace) -> None:
    """Begin the directory, or find that it is this comparison's. Raises EvalError."""
    for arm in arms(["rpc"], options.intervals, options.window, options.ratios):
        try:
            RPCConfig(interval=arm.interval, window=arm.window, ratio=arm.ratio)
        except ConfigError as error:
            raise EvalError(str(error)) from error
    common = {
        "task": options.task,
        "problem_seed": options.problem_seed,
        "model_path": str(options.model_path),
        "server_flags": _flags(options),
    }
    path = options.out / "comparison.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(common, indent=1) + "\n")
    known = json.loads(path.read_text())
    for name, value in common.items():
        if known.get(name) != value:
            raise EvalError(
                f"{options.out} holds another comparison: {name} was {known.get(name)!r} and is {value!r} now; "
                "choose another --out"
            )


def _flags(options: argparse.Namespace) -> list[str]:
    if options.server_flags is None:
        # The reasoner's think tags, and the dtype it was trained in.
        return (
            ["--reasoning-parser", "deepseek-r1", "--dtype", "float32"] if options.task.startswith("reasoner") else []
        )
    try:
        return shlex.split(options.server_flags)
    except ValueError as error:
        raise EvalError(f"--server-flags can't be read as a command line: {error}") from error


def _problems(options: argparse.Namespace) -> list[str]:
    return [problem.id for problem in tasks.find(options.task, options.problems, options.problem_seed).problems]


def _measure(mine: list[Arm], options: argparse.Namespace) -> None:
    """One server, all arms of one policy; no server if all is there. Raises EvalError, BenchError."""
    wanted = {(problem, sample) for problem in _problems(options) for sample in range(options.samples)}
    left = [arm for arm in mine if not wanted <= {(r["problem"], r["sample"]) for r in _samples(arm, options.out)}]
    if not left:
        return
    policy = mine[0].policy
    flags = [
        *("--model-path", str(options.model_path), "--rpc-policy", "rpc" if policy == FULL else policy),
        *("--rpc-interval", str(mine[0].interval), "--rpc-window", str(options.window)),
        *("--rpc-ratio", f"{mine[0].ratio:g}", *_flags(options)),
    ]
    device = machine.default_device()
    if policy == "h2o" and device != "cpu":
        flags += ["--cuda-graph-backend-decode", "disabled"]  # it reads every step's attention
    env = machine.server_environment(machine.default_threads(device))
    with server.running(MODULE, flags, options.out / "logs" / f"{policy}.log", env) as running:
        for arm in left:
            print(f"{arm.name}:", flush=True)
            running.flush()  # every arm begins with an empty prefix cache
            run(
                Run(
                    task=options.task,
                    out=options.out / f"{arm.name}.jsonl",
                    base_url=running.url + "/v1",
                    problems=options.problems,
                    problem_seed=options.problem_seed,
                    samples=options.samples,
                    concurrency=options.concurrency,
                    rpc=arm.rpc,
                )
            )


def _samples(arm: Arm, out: Path) -> list[dict[str, Any]]:
    path = out / f"{arm.name}.jsonl"
    return read(path)[1] if path.exists() else []


def summary(every: Sequence[Arm], out: Path, problems: Sequence[str], samples: int) -> list[dict[str, Any]]:
    """A row an arm, from the samples alone; arms that lack one of these problems' samples are left out."""
    found, judges = {}, {}
    for arm in every:
        rows = [row for row in _samples(arm, out) if row["problem"] in set(problems) and row["sample"] < samples]
        if len(rows) == len(problems) * samples:
            found[arm] = rows
            config, _ = read(out / f"{arm.name}.jsonl")
            judges[arm.name] = {name: (config or {}).get(name) for name in ("model_sha", "grader_sha")}
    if len({tuple(judge.values()) for judge in judges.values()}) > 1:
        raise EvalError(f"the arms in {out} are of different models or graders ({judges}); choose another --out")
    full = shares(next((rows for arm, rows in found.items() if arm.policy == FULL), []))
    return [_row(arm, rows, full) for arm, rows in found.items()]


def shares(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of right samples, problem by problem."""
    marks: dict[str, list[bool]] = {}
    for row in rows:
        marks.setdefault(row["problem"], []).append(row["correct"])
    return {problem: fmean(each) for problem, each in marks.items()}


def _row(arm: Arm, rows: Sequence[dict[str, Any]], full: dict[str, float]) -> dict[str, Any]:
    found = report(rows)
    difference, error, _ = paired(shares(rows), full)
    held = [r["receipt"]["held"] / max(1, r["receipt"]["generated"]) for r in rows if r["receipt"]]
    return {
        "arm": arm.name,
        "policy": arm.policy,
        "interval": arm.interval,
        "window": arm.window,
        "ratio": arm.ratio,
        "problems": found.problems,
        "samples": found.samples,
        "accuracy": found.accuracy,
        "error": found.error,
        "to_full": difference,
        "to_full_error": error,
        "no_answer": found.no_answer,
        "truncated": found.truncated,
        "looping": found.looping,
        "tokens": found.tokens,
        "held_share": 1.0 if arm.policy == FULL or not held else fmean(held),
        "tok_s": fmean(r["tokens"] / r["seconds"] for r in rows),
    }


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def show(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'arm':<24} {'accuracy':>16} {'to full':>16} {'KV held':>8} {'tokens':>7} {'tok/s a sample':>15}"]
    for row in rows:
        lines.append(
            f"{row['arm']:<24} {row['accuracy']:>7.3f} +- {row['error']:.3f} {row['to_full']:>+7.3f} +- "
            f"{row['to_full_error']:.3f} {row['held_share']:>8.1%} {row['tokens']:>7.0f} {row['tok_s']:>15.1f}"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Accuracy against the KV that is held at the end: a line a policy, bars of one standard error."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install -e '.[bench]')")
        return []
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "eval", "font.size": 9})
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for policy in dict.fromkeys(row["policy"] for row in rows):
        mine = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["held_share"])
        x, y, error = ([row[name] for row in mine] for name in ("held_share", "accuracy", "error"))
        axis.errorbar(x, y, yerr=error, marker="o", capsize=3, label=policy)
    axis.set(xlabel="generated KV held at the end, share", ylabel="accuracy", ylim=(-0.02, 1.02), xlim=(0, 1.05))
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    written = [out / f"accuracy_by_kv.{suffix}" for suffix in ("png", "svg")]
    for path in written:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return written


def _parser() -> argparse.ArgumentParser:
    def several(kind: type) -> Any:
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--task", default="reasoner:far")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--policies", type=several(str), default="rpc,random,streaming,tova,h2o,snapkv,rkv")
    parser.add_argument("--intervals", type=several(int), default="64", metavar="P,...")
    parser.add_argument("--window", type=positive, default=32, metavar="R")
    parser.add_argument("--ratios", type=several(float), default="4,8", metavar="C,...")
    parser.add_argument("--problems", type=positive, default=300)
    parser.add_argument("--problem-seed", type=natural, default=0)
    parser.add_argument("--samples", type=positive, default=1, help="a problem")
    parser.add_argument("--concurrency", type=positive, default=8)
    parser.add_argument(
        "--server-flags", help="more flags of the server, one text (of the reasoner: its parser, and float32)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
