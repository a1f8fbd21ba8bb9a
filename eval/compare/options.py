"""The command line of eval.compare, checked: what it measures, as registrations and comparison.json tell it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from eval.accuracy import tasks
from eval.accuracy.__main__ import natural, positive
from eval.accuracy.errors import EvalError
from eval.compare.arms import BASELINES, FULL, Arm, arms, label
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.resolve import require_policy


def parser(description: str) -> argparse.ArgumentParser:
    def several(kind: Any) -> Any:
        return lambda text: [kind(part) for part in text.split(",")]

    made = argparse.ArgumentParser(prog="python -m eval.compare", description=description)
    made.add_argument("--model-path", required=True)
    made.add_argument("--task", default="reasoner:far")
    made.add_argument("--data", type=Path, metavar="FILE", help="rows of the task, where they are not made up")
    made.add_argument("--out", type=Path, required=True, metavar="DIR")
    made.add_argument(
        "--policies",
        type=several(str),
        default="rpc,peak,random,streaming,tova,h2o,snapkv,rkv",
        metavar="NAME,...",
        help="as --rpc-policy takes them, package.module:function and registered names too; "
        "full KV, random and streaming are always measured",
    )
    made.add_argument("--intervals", type=several(int), default="64", metavar="P,...")
    made.add_argument("--window", type=positive, default=32, metavar="R")
    made.add_argument("--ratios", type=several(float), default="4,8", metavar="C,...")
    made.add_argument(
        "--min-kept", type=several(int), default="0", metavar="F,...", help="floors of the budget; 0 is none"
    )
    made.add_argument("--problems", type=positive, default=300)
    made.add_argument("--problem-seed", type=natural, default=0)
    made.add_argument("--samples", type=positive, default=1, help="a problem")
    made.add_argument("--concurrency", type=positive, default=150, help="requests at once")
    made.add_argument(
        "--server-flags", help="more flags of the server, one text (of a small reasoner: its parser, and float32)"
    )
    return made


def policies(asked: argparse.Namespace) -> list[str]:
    """Those asked for, then the baselines."""
    return list(dict.fromkeys([*asked.policies, *BASELINES]))


def arms_of(asked: argparse.Namespace) -> list[Arm]:
    return arms(policies(asked), asked.intervals, asked.window, asked.ratios, asked.min_kept)


def check(asked: argparse.Namespace) -> None:
    """Raises EvalError for what is sure to fail: a policy that is not found, arms that no server would take."""
    called: dict[str, str] = {}
    for policy in policies(asked):
        if policy == FULL:
            raise EvalError("--policies takes policies, got 'full'; full KV is always measured, leave it out")
        try:
            require_policy(policy)
        except ConfigError as error:
            raise EvalError(f"--policies: {error}") from error
        other = called.setdefault(label(policy), policy)
        if other != policy:
            raise EvalError(
                f"--policies {other} and {policy} would both be called {label(policy)!r} in {asked.out}; "
                "measure them in two folders"
            )
    for arm in arms(["rpc"], asked.intervals, asked.window, asked.ratios, asked.min_kept):
        try:
            RPCConfig(interval=arm.interval, window=arm.window, ratio=arm.ratio, min_kept=arm.min_kept)
        except ConfigError as error:
            raise EvalError(str(error)) from error
    flags(asked)


def flags(asked: argparse.Namespace) -> list[str]:
    """Of the server, beside those of its arms. Raises EvalError if --server-flags is no command line."""
    if asked.server_flags is None:
        # A small reasoner's think tags, and the dtype it was trained in.
        made_up = asked.task.partition(":")[0] in tasks.MADE_UP
        return ["--reasoning-parser", "deepseek-r1", "--dtype", "float32"] if made_up else []
    try:
        return shlex.split(asked.server_flags)
    except ValueError as error:
        raise EvalError(f"--server-flags can't be read as a command line: {error}") from error


def common(asked: argparse.Namespace) -> dict[str, Any]:
    """What all arms of a folder share, also those that are added later."""
    return {
        "task": asked.task,
        "problem_seed": asked.problem_seed,
        "model_path": str(asked.model_path),
        "server_flags": flags(asked),
    }


def described(asked: argparse.Namespace) -> dict[str, Any]:
    """All that decides what is measured, but not where or how fast."""
    return {
        **common(asked),
        "data": None if asked.data is None else str(asked.data),
        "problems": asked.problems,
        "samples": asked.samples,
        "policies": policies(asked),
        "intervals": asked.intervals,
        "window": asked.window,
        "ratios": asked.ratios,
        "min_kept": asked.min_kept,
        "arms": [arm.name for arm in arms_of(asked)],
    }
