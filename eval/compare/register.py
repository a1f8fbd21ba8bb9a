"""Write down a comparison before it is run: `python -m eval.compare.register --plan PLAN.toml --out DIR`.

Writes `registered.json` into DIR/NAME of each folder of the plan:

    question = "Does peak forget less than rpc at equal KV entries?"
    [all]                                   # flags of eval.compare, for all folders
    model-path = "eval/reasoner/model"
    problem-seed = 71
    [folders.near]                          # flags of eval.compare, for DIR/near
    task = "reasoner:near"
    ratios = [4, 8, 12]
    [[comparisons]]                         # in all folders, or those named in `folders`; at all ratios and floors, or
    first = "peak"                          # those named in `ratios`, `min_kept`
    second = "rpc"
    expect = "better"                       # or "not worse"
    [[goals]]                               # likewise
    policy = "peak"
    at_least = 0.9                          # or at_most
    folders = ["near"]
    ratios = [12]

Policies are named as in the arms' names. `level` (0.05) may be set beside the question.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import sys
import tomllib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from eval.bench import machine
from eval.compare import options
from eval.compare.arms import Arm
from eval.compare.registration import EXPECTATIONS, NAME, Comparison, Goal, Registration, matching, pairs

#: Flags of eval.compare that a plan does not set: where, and how fast.
ELSEWHERE = ("out", "concurrency")
SELECTORS = {"folders", "ratios", "min_kept"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.compare.register", description=__doc__.partition("\n")[0])
    parser.add_argument("--plan", type=Path, required=True, metavar="PLAN.toml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the folders are to be")
    given = parser.parse_args(argv)
    try:
        plan = tomllib.loads(given.plan.read_text(encoding="utf-8"))
        made = planned(plan, given.out)
        _unmeasured(made, given.out)
    except (EvalError, OSError, ValueError) as error:
        print(f"eval.compare.register: --plan {given.plan}: {error}", file=sys.stderr)
        return 1
    text = json.dumps(made.to_json(), indent=1) + "\n"
    for name in made.folders:
        (given.out / name).mkdir(parents=True, exist_ok=True)
        (given.out / name / NAME).write_text(text)
        print(given.out / name / NAME)
    print(f"{len(made.comparisons)} comparisons and {len(made.goals)} goals in {len(made.folders)} folders")
    return 0


def planned(plan: Mapping[str, Any], out: Path) -> Registration:
    """Raises EvalError for a plan that eval.compare could not carry out, or whose comparisons have no arms."""
    _known(plan, {"question", "level", "all", "folders", "comparisons", "goals"}, "the plan")
    folders: dict[str, dict[str, Any]] = {}
    arms: dict[str, list[Arm]] = {}
    for name, flags in plan.get("folders", {}).items():
        asked = _asked({**plan.get("all", {}), **flags}, out / name)
        options.check(asked)
        tasks.find(asked.task, 1, asked.problem_seed, asked.data)
        folders[name], arms[name] = options.described(asked), options.arms_of(asked)
    if not folders or not plan.get("question"):
        raise EvalError("it needs a question and at least one table [folders.NAME]")
    comparisons = [c for each in plan.get("comparisons", []) for c in _comparisons(each, arms)]
    goals = [g for each in plan.get("goals", []) for g in _goals(each, arms)]
    if not comparisons and not goals:
        raise EvalError("it needs [[comparisons]] or [[goals]]; without any there is nothing to register")
    if len(set(comparisons)) < len(comparisons):
        raise EvalError("two of its [[comparisons]] name the same pair of arms; each counts once")
    said = machine.conditions()
    commit = f"{said['commit']}{' and changes' if said['dirty'] == 'yes' else ''}"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Registration(str(plan["question"]), now, commit, float(plan.get("level", 0.05)), folders, comparisons, goals)


def _asked(flags: Mapping[str, Any], out: Path) -> argparse.Namespace:
    """The command line of eval.compare that these flags are."""
    argv = [f"--out={out}"]
    for name, value in flags.items():
        if name.replace("-", "_") in ELSEWHERE:
            raise EvalError(f"{name} is not registered; give it to eval.compare")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        argv.append(f"--{name.replace('_', '-')}={text}")
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused):
            return options.parser("").parse_args(argv)
    except SystemExit:
        raise EvalError(f"[folders.{out.name}]: {refused.getvalue().strip().splitlines()[-1]}") from None


def _comparisons(each: Mapping[str, Any], arms: Mapping[str, list[Arm]]) -> list[Comparison]:
    _known(each, {"first", "second", "expect", *SELECTORS}, "[[comparisons]]", needed={"first", "second", "expect"})
    if each["expect"] not in EXPECTATIONS:
        raise EvalError(f"expect must be one of {', '.join(EXPECTATIONS)}, got {each['expect']!r}")
    found = [
        pair
        for folder in _folders(each, arms)
        for pair in pairs(folder, arms[folder], each["first"], each["second"], each["expect"], each)
    ]
    if not found:
        raise EvalError(f"no setting of its folders has arms of both {each['first']} and {each['second']}")
    return found


def _goals(each: Mapping[str, Any], arms: Mapping[str, list[Arm]]) -> list[Goal]:
    _known(each, {"policy", "at_least", "at_most", *SELECTORS}, "[[goals]]", needed={"policy"})
    if not {"at_least", "at_most"} & each.keys():
        raise EvalError(f"the goal of {each['policy']} needs at_least or at_most")
    found = [
        Goal(folder, arm.name, each.get("at_least"), each.get("at_most"))
        for folder in _folders(each, arms)
        for arm in matching(arms[folder], each["policy"], each)
    ]
    if not found:
        raise EvalError(f"no folder of the goal of {each['policy']} has an arm of it")
    return found


def _folders(each: Mapping[str, Any], arms: Mapping[str, list[Arm]]) -> list[str]:
    wanted = each.get("folders", list(arms))
    unknown = [name for name in wanted if name not in arms]
    if unknown:
        raise EvalError(f"there is no table [folders.{unknown[0]}]")
    return list(wanted)


def _known(table: Mapping[str, Any], allowed: set[str], where: str, needed: Set[str] = frozenset()) -> None:
    unknown, lacking = sorted(table.keys() - allowed), sorted(needed - table.keys())
    if unknown:
        raise EvalError(f"{where} takes {', '.join(sorted(allowed))}, got {unknown[0]}")
    if lacking:
        raise EvalError(f"{where} needs {lacking[0]}")


def _unmeasured(made: Registration, out: Path) -> None:
    """Raises EvalError if a folder has samples, or a registration, already."""
    for name in made.folders:
        there = [*(out / name).glob("*.jsonl"), *(out / name).glob("summary.csv"), *(out / name).glob(NAME)]
        if there:
            raise EvalError(f"{there[0]} is there already; register before the run, into another folder")


if __name__ == "__main__":
    sys.exit(main())
