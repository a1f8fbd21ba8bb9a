"""Comparisons, one in a folder: their arms measured on servers, their tables and plots written."""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from eval.accuracy.run import Run
from eval.accuracy.run import run as sample
from eval.bench import machine, server, shapes
from eval.bench.errors import BenchError
from eval.compare import options, registration, table, written
from eval.compare.arms import FULL, Arm, server_flags
from eval.compare.plots import plot
from sglang_rpc.policy.resolve import accumulates

MODULE = "sglang_rpc.launch_server"


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


def claim(asked: argparse.Namespace) -> None:
    """Begin the directory, or find that it is this comparison's, as registered if it is. Raises EvalError."""
    options.check(asked)
    registration.check(asked)
    written.claim(asked.out / "comparison.json", options.common(asked), "comparison")


def measure(comparisons: Sequence[argparse.Namespace]) -> list[str]:
    """All arms that are not there yet, one server per policy for all folders that can share it. Says what failed."""
    shared: dict[tuple[str, int, str], list[argparse.Namespace]] = {}
    for asked in comparisons:  # ratio, interval and floor go with each request
        shared.setdefault((str(asked.model_path), asked.window, str(options.flags(asked))), []).append(asked)
    failed = []
    for group in shared.values():
        for policy in dict.fromkeys(arm.policy for asked in group for arm in options.arms_of(asked)):
            try:
                measure_policy(policy, group)
            except (EvalError, BenchError) as error:
                failed.append(f"{policy}: {error}")
    return failed


def measure_policy(policy: str, comparisons: Sequence[argparse.Namespace]) -> None:
    """One server, all arms of one policy; no server if all is there. Raises EvalError, BenchError."""
    left = [(asked, arm) for asked in comparisons for arm in _left(policy, asked)]
    if not left:
        return
    first, arm = left[0]
    flags = [
        *("--model-path", str(first.model_path), "--rpc-policy", "rpc" if policy == FULL else policy),
        *(*server_flags([arm for _, arm in left]), *options.flags(first)),
    ]
    device = machine.default_device()
    if policy != FULL and accumulates(policy) and device != "cpu":
        flags += ["--cuda-graph-backend-decode", "disabled"]  # it reads every step's attention
    env = machine.server_environment(machine.default_threads(device))
    with server.running(MODULE, flags, first.out / "logs" / f"{arm.label}.log", env) as running:
        for asked, each in left:
            print(f"{asked.task}, {each.name}:", flush=True)
            running.flush()  # every arm begins with an empty prefix cache
            sample(_run(asked, each, running.url))


def finish(asked: argparse.Namespace) -> None:
    """Tables and plots of what is there, printed too. Raises EvalError, OSError."""
    found = table.complete(options.arms_of(asked), asked.out, _problems(asked), asked.samples)
    rows = table.summary(found, table.at_once(found, asked.out), _entry_bytes(asked))
    if not rows:
        return
    table.write(rows, asked.out / "summary.csv")
    table.write_problems(found, asked.out / "problems.csv")
    table.write_conditions(found, asked.out)
    print(table.show(rows))
    title = f"{asked.model_path}, {asked.task}: {rows[0]['problems']} problems, 95 % intervals"
    for path in plot(rows, asked.out, title):
        print(path)


def _left(policy: str, asked: argparse.Namespace) -> Iterator[Arm]:
    wanted = {(problem, sample) for problem in _problems(asked) for sample in range(asked.samples)}
    for arm in options.arms_of(asked):
        there = {(row["problem"], row["sample"]) for row in table.samples_of(arm, asked.out)}
        if arm.policy == policy and not wanted <= there:
            yield arm


def _run(asked: argparse.Namespace, arm: Arm, url: str) -> Run:
    return Run(
        task=asked.task,
        out=asked.out / f"{arm.name}.jsonl",
        base_url=url + "/v1",
        problems=asked.problems,
        problem_seed=asked.problem_seed,
        data=asked.data,
        samples=asked.samples,
        concurrency=asked.concurrency,
        rpc=arm.rpc,
    )


def _problems(asked: argparse.Namespace) -> list[str]:
    return _ids(asked.task, asked.problems, asked.problem_seed, asked.data)


@functools.cache
def _ids(task: str, problems: int, seed: int, data: Path | None) -> list[str]:
    return [problem.id for problem in tasks.find(task, problems, seed, data).problems]  # may be gigabytes from the hub


def _entry_bytes(asked: argparse.Namespace) -> int | None:
    """Of a token's KV in all layers; None of a model that is not here, or has no such thing (MLA's latents)."""
    try:
        config: dict[str, Any] = json.loads((Path(asked.model_path) / "config.json").read_text())
        if "kv_lora_rank" in config:
            return None
        flags = options.flags(asked)
        wanted = next((flags[i + 1] for i, flag in enumerate(flags[:-1]) if flag == "--dtype"), None)
        dtype = wanted or config.get("dtype") or config.get("torch_dtype") or ""
        return shapes.at_path(str(asked.model_path), dummy=False).kv_bytes_per_token(dtype)
    except (OSError, ValueError, AttributeError, BenchError):
        return None
