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
import signal
import sys
from pathlib import Path
from typing import Any

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from eval.accuracy.run import Run, run
from eval.bench import machine, server, shapes
from eval.bench.errors import BenchError
from eval.compare import options, registration, table, written
from eval.compare.arms import FULL, Arm
from eval.compare.plots import plot
from sglang_rpc.policy.resolve import accumulates

MODULE = "sglang_rpc.launch_server"


def main(argv: list[str] | None = None) -> int:
    asked = options.parser(__doc__.partition("\n")[0]).parse_args(argv)
    every = options.arms_of(asked)
    # A server has a session of its own: whoever ends this ends it too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed: list[str] = []
    rows: list[dict[str, Any]] = []
    try:
        _claim(asked)
        for policy in dict.fromkeys(arm.policy for arm in every):
            try:
                _measure([arm for arm in every if arm.policy == policy], asked)
            except (EvalError, BenchError) as error:
                failed.append(f"{policy}: {error}")
        found = table.complete(every, asked.out, _problems(asked), asked.samples)
        rows = table.summary(found, table.at_once(found, asked.out), _entry_bytes(asked))
    except (EvalError, BenchError, OSError) as error:
        failed.append(str(error))
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {asked.out}", file=sys.stderr)
        return 130
    if rows:
        table.write(rows, asked.out / "summary.csv")
        table.write_problems(found, asked.out / "problems.csv")
        table.write_conditions(found, asked.out)
        print(table.show(rows))
        title = f"{asked.model_path}, {asked.task}: {rows[0]['problems']} problems, 95 % intervals"
        for path in plot(rows, asked.out, title):
            print(path)
    for sentence in failed:
        print(f"eval.compare: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _claim(asked: argparse.Namespace) -> None:
    """Begin the directory, or find that it is this comparison's, as registered if it is. Raises EvalError."""
    options.check(asked)
    registration.check(asked)
    written.claim(asked.out / "comparison.json", options.common(asked), "comparison")


def _problems(asked: argparse.Namespace) -> list[str]:
    return _ids(asked.task, asked.problems, asked.problem_seed, asked.data)


@functools.cache
def _ids(task: str, problems: int, seed: int, data: Path | None) -> list[str]:
    return [problem.id for problem in tasks.find(task, problems, seed, data).problems]  # may be gigabytes from the hub


def _entry_bytes(asked: argparse.Namespace) -> int | None:
    """Of a token's KV in all layers; None of a model that is not here, or has no such thing (MLA's latents)."""
    try:
        config = json.loads((Path(asked.model_path) / "config.json").read_text())
        if "kv_lora_rank" in config:
            return None
        flags = options.flags(asked)
        wanted = next((flags[i + 1] for i, flag in enumerate(flags[:-1]) if flag == "--dtype"), None)
        dtype = wanted or config.get("dtype") or config.get("torch_dtype") or ""
        return shapes.at_path(str(asked.model_path), dummy=False).kv_bytes_per_token(dtype)
    except (OSError, ValueError, AttributeError, BenchError):
        return None


def _measure(mine: list[Arm], asked: argparse.Namespace) -> None:
    """One server, all arms of one policy; no server if all is there. Raises EvalError, BenchError."""
    wanted = {(problem, sample) for problem in _problems(asked) for sample in range(asked.samples)}
    left = [
        arm for arm in mine if not wanted <= {(r["problem"], r["sample"]) for r in table.samples_of(arm, asked.out)}
    ]
    if not left:
        return
    policy = mine[0].policy
    flags = [
        *("--model-path", str(asked.model_path), "--rpc-policy", "rpc" if policy == FULL else policy),
        *("--rpc-interval", str(mine[0].interval), "--rpc-window", str(asked.window)),
        *("--rpc-ratio", f"{mine[0].ratio:g}", *options.flags(asked)),
    ]
    device = machine.default_device()
    if policy != FULL and accumulates(policy) and device != "cpu":
        flags += ["--cuda-graph-backend-decode", "disabled"]  # it reads every step's attention
    env = machine.server_environment(machine.default_threads(device))
    with server.running(MODULE, flags, asked.out / "logs" / f"{mine[0].label}.log", env) as running:
        for arm in left:
            print(f"{arm.name}:", flush=True)
            running.flush()  # every arm begins with an empty prefix cache
            run(
                Run(
                    task=asked.task,
                    out=asked.out / f"{arm.name}.jsonl",
                    base_url=running.url + "/v1",
                    problems=asked.problems,
                    problem_seed=asked.problem_seed,
                    data=asked.data,
                    samples=asked.samples,
                    concurrency=asked.concurrency,
                    rpc=arm.rpc,
                )
            )


if __name__ == "__main__":
    sys.exit(main())
