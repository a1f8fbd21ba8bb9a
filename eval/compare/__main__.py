"""Policies, ratios and intervals on one task: `python -m eval.compare --model-path DIR --task reasoner:far --out DIR`.

One server a policy; ratio and interval are sent with each request. Every arm solves the same problems, so differences
to the full KV cache are taken problem by problem. Writes a file of samples an arm, `comparison.json` (what all have in
common), `summary.csv`, `problems.csv`, `conditions.json` and the plot; the same command goes on where it was stopped,
with more policies, ratios, intervals or problems too.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from eval.accuracy import tasks
from eval.accuracy.__main__ import natural, positive
from eval.accuracy.errors import EvalError
from eval.accuracy.run import Run, run
from eval.bench import machine, server, shapes
from eval.bench.errors import BenchError
from eval.compare import table
from eval.compare.arms import FULL, Arm, arms
from eval.compare.plots import plot
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.resolve import POLICIES

MODULE = "sglang_rpc.launch_server"


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    every = arms(options.policies, options.intervals, options.window, options.ratios)
    # A server has a session of its own: whoever ends this ends it too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed: list[str] = []
    rows: list[dict[str, Any]] = []
    try:
        _claim(options)
        for policy in dict.fromkeys(arm.policy for arm in every):
            try:
                _measure([arm for arm in every if arm.policy == policy], options)
            except (EvalError, BenchError) as error:
                failed.append(f"{policy}: {error}")
        found = table.complete(every, options.out, _problems(options), options.samples)
        rows = table.summary(found, table.at_once(found, options.out), _entry_bytes(options))
    except (EvalError, BenchError, OSError) as error:
        failed.append(str(error))
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {options.out}", file=sys.stderr)
        return 130
    if rows:
        table.write(rows, options.out / "summary.csv")
        table.write_problems(found, options.out / "problems.csv")
        table.write_conditions(found, options.out)
        print(table.show(rows))
        title = f"{options.model_path}, {options.task}: {rows[0]['problems']} problems, 95 % intervals"
        for path in plot(rows, options.out, title):
            print(path)
    for sentence in failed:
        print(f"eval.compare: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _claim(options: argparse.Namespace) -> None:
    """Begin the directory, or find that it is this comparison's. Raises EvalError."""
    unknown = [policy for policy in options.policies if policy not in POLICIES]
    if unknown:
        raise EvalError(f"--policies must be of {', '.join(POLICIES)} (full KV is always there), got {unknown[0]!r}")
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
        # A small reasoner's think tags, and the dtype it was trained in.
        made_up = options.task.partition(":")[0] in tasks.MADE_UP
        return ["--reasoning-parser", "deepseek-r1", "--dtype", "float32"] if made_up else []
    try:
        return shlex.split(options.server_flags)
    except ValueError as error:
        raise EvalError(f"--server-flags can't be read as a command line: {error}") from error


def _problems(options: argparse.Namespace) -> list[str]:
    return _ids(options.task, options.problems, options.problem_seed, options.data)


@functools.cache
def _ids(task: str, problems: int, seed: int, data: Path | None) -> list[str]:
    return [problem.id for problem in tasks.find(task, problems, seed, data).problems]  # may be gigabytes from the hub


def _entry_bytes(options: argparse.Namespace) -> int | None:
    """Of a token's KV in all layers; None of a model that is not here, or has no such thing (MLA's latents)."""
    try:
        config = json.loads((Path(options.model_path) / "config.json").read_text())
        if "kv_lora_rank" in config:
            return None
        flags = _flags(options)
        wanted = next((flags[i + 1] for i, flag in enumerate(flags[:-1]) if flag == "--dtype"), None)
        dtype = wanted or config.get("dtype") or config.get("torch_dtype") or ""
        return shapes.at_path(str(options.model_path), dummy=False).kv_bytes_per_token(dtype)
    except (OSError, ValueError, AttributeError, BenchError):
        return None


def _measure(mine: list[Arm], options: argparse.Namespace) -> None:
    """One server, all arms of one policy; no server if all is there. Raises EvalError, BenchError."""
    wanted = {(problem, sample) for problem in _problems(options) for sample in range(options.samples)}
    left = [
        arm for arm in mine if not wanted <= {(r["problem"], r["sample"]) for r in table.samples_of(arm, options.out)}
    ]
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
                    data=options.data,
                    samples=options.samples,
                    concurrency=options.concurrency,
                    rpc=arm.rpc,
                )
            )


def _parser() -> argparse.ArgumentParser:
    def several(kind: type) -> Any:
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--task", default="reasoner:far")
    parser.add_argument("--data", type=Path, metavar="FILE", help="rows of the task, where they are not made up")
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
