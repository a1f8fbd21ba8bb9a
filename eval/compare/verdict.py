"""What came of a registration: `python -m eval.compare.verdict --results DIR ...`, all folders that it covers.

Reads each folder's `registered.json`, `problems.csv` and `summary.csv`; writes `verdict.md` and `verdict.csv` into the
first folder, or --out.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.accuracy.errors import EvalError
from eval.accuracy.statistics import holm, paired, sign_flip
from eval.compare import fair, registration, written
from eval.compare.registration import CORRECTION, TEST, Comparison, Goal, Registration

#: Over the table of comparisons.
HEAD = (
    *("task", "first", "second", "KV entries, mean / peak", "difference, points", "problems, first : second"),
    *("p", "adjusted p", "registered", "met"),
)


@dataclass(frozen=True)
class Folder:
    task: str
    commit: str  #: at which it was measured
    rows: dict[str, dict[str, str]]  #: of summary.csv, by arm
    shares: dict[str, dict[str, float]]  #: of problems.csv, by arm
    samples: int  #: a problem


@dataclass(frozen=True)
class Found:
    """One comparison, tested."""

    asked: Comparison
    difference: float
    error: float
    p: float
    adjusted: float
    more: int  #: problems that the first solves more often
    fewer: int
    met: bool


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.compare.verdict", description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, nargs="+", required=True, metavar="DIR", help="measured as registered")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the first of --results")
    given = parser.parse_args(argv)
    out = given.out or given.results[0]
    try:
        registered, folders = load(given.results)
        found = judged(registered, folders)
        text = markdown(registered, folders, found)
        out.mkdir(parents=True, exist_ok=True)
        _write(found, folders, out / "verdict.csv")
        (out / "verdict.md").write_text(text, encoding="utf-8")
    except (EvalError, OSError, ValueError, KeyError) as error:
        print(f"eval.compare.verdict: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


def load(results: Sequence[Path]) -> tuple[Registration, dict[str, Folder]]:
    """Raises EvalError unless these are the folders of one registration, and hold all that was registered."""
    each = {path.resolve().name: registration.read(path) for path in results}
    first = next(iter(each.values()))
    if first is None or any(other != first for other in each.values()):
        raise EvalError("--results must be folders of one registration, each with the same registered.json")
    lacking, strange = first.folders.keys() - each.keys(), each.keys() - first.folders.keys()
    if lacking or strange:
        raise EvalError(f"--results must be the folders registered, {', '.join(first.folders)}; got {', '.join(each)}")
    return first, {path.resolve().name: _folder(path, first.folders[path.resolve().name]) for path in results}


def _folder(path: Path, asked: Mapping[str, Any]) -> Folder:
    other = [name for name, value in written.said(path).items() if asked[name] != value]
    if other:
        raise EvalError(f"{path} holds another comparison than was registered: its {other[0]} is another")
    rows = {row["arm"]: row for row in written.summary(path)}
    shares = written.problems(path)
    lacking = [arm for arm in asked["arms"] if arm not in rows or arm not in shares]
    if lacking:
        raise EvalError(f"{path} has no complete arm {lacking[0]} yet; go on with eval.compare")
    wrong = [arm for arm in asked["arms"] if len(shares[arm]) != asked["problems"]]
    if wrong:
        count = len(shares[wrong[0]])
        raise EvalError(f"{path} has {count} problems and is registered for {asked['problems']}; measure those")
    said = written.said(path, "conditions.json")
    commits = {arm.get("commit") for arm in [said["all"], *said["arms"].values()]} - {None}
    return Folder(asked["task"], ", ".join(sorted(commits)), rows, shares, asked["samples"])


def judged(registered: Registration, folders: Mapping[str, Folder]) -> list[Found]:
    tested = [(asked, *_pair(asked, folders[asked.folder])) for asked in registered.comparisons]
    adjusted = holm([p for *_, p in tested])
    found = []
    for (asked, whole, (difference, error), p), final in zip(tested, adjusted, strict=True):
        met = asked.met(difference, error, final, registered.level)
        more, fewer = sum(d > 0 for d in whole), sum(d < 0 for d in whole)
        found.append(Found(asked, difference, error, p, final, more, fewer, met))
    return found


def _pair(asked: Comparison, folder: Folder) -> tuple[list[int], tuple[float, float], float]:
    """Differences in right samples problem by problem, their mean share with its error, and p."""
    first, second = folder.shares[asked.first], folder.shares[asked.second]
    whole = [round((first[problem] - second[problem]) * folder.samples) for problem in first]
    return whole, paired(first, second)[:2], sign_flip(whole)


def markdown(registered: Registration, folders: Mapping[str, Folder], found: Sequence[Found]) -> str:
    goals = [(goal, folders[goal.folder].rows[goal.arm]) for goal in registered.goals]
    kept = sum(goal.met(float(row["accuracy"])) for goal, row in goals)
    measured = sorted({folder.commit for folder in folders.values()})
    lines = [
        f"# {registered.question}",
        "",
        f"Registered {registered.date}, at commit {registered.commit}, before the run; measured at commit "
        f"{', '.join(measured)}. Test: {TEST}. Correction: {CORRECTION} ({len(found)}). Level: {registered.level:g}.",
        "",
        f"**{sum(each.met for each in found)} of {len(found)} comparisons and {kept} of {len(goals)} goals "
        "are as registered.**",
    ]
    if found:
        lines += ["", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
        lines += [_line(each, folders[each.asked.folder]) for each in found]
    if goals:
        lines += ["", "| task | arm | accuracy (95 %) | goal | met |", "|---" * 5 + "|"]
        lines += [_goal(goal, row, folders[goal.folder]) for goal, row in goals]
    return "\n".join(lines) + "\n"


def _line(each: Found, folder: Folder) -> str:
    first, second = folder.rows[each.asked.first], folder.rows[each.asked.second]
    kv = fair.entries(first)
    if not fair.same_entries(first, second):
        kv += f" and {fair.entries(second)}: not equal"
    return (
        f"| {folder.task} | `{each.asked.first}` | `{each.asked.second}` | {kv} "
        f"| {100 * each.difference:+.1f} ± {100 * each.error:.1f} | {each.more} : {each.fewer} "
        f"| {each.p:.2g} | {each.adjusted:.2g} | {each.asked.expect} | {_yes(each.met)} |"
    )


def _goal(goal: Goal, row: Mapping[str, str], folder: Folder) -> str:
    accuracy, low, high = (100 * float(row[name]) for name in ("accuracy", "accuracy_low", "accuracy_high"))
    met = goal.met(float(row["accuracy"]))
    return f"| {folder.task} | `{goal.arm}` | {accuracy:.1f} [{low:.1f}, {high:.1f}] | {goal} | {_yes(met)} |"


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _write(found: Sequence[Found], folders: Mapping[str, Folder], path: Path) -> None:
    columns = (
        *("folder", "task", "first", "second", "first_accuracy", "second_accuracy", "difference", "error"),
        *("more", "fewer", "p", "p_adjusted", "expect", "met"),
        *("first_mean_entries", "second_mean_entries", "first_peak_entries", "second_peak_entries"),
    )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for each in found:
            asked, folder = each.asked, folders[each.asked.folder]
            both = [folder.rows[asked.first], folder.rows[asked.second]]
            writer.writerow(
                [
                    *(asked.folder, folder.task, asked.first, asked.second, *(row["accuracy"] for row in both)),
                    *(f"{value:.6g}" for value in (each.difference, each.error)),
                    *(
                        each.more,
                        each.fewer,
                        f"{each.p:.6g}",
                        f"{each.adjusted:.6g}",
                        asked.expect,
                        "yes" if each.met else "no",
                    ),
                    *(row[name] for name in ("mean_entries", "peak_entries") for row in both),
                ]
            )


if __name__ == "__main__":
    sys.exit(main())
