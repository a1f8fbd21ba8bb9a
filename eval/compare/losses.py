"""After which compression thoughts first went wrong: `python -m eval.compare.losses --results DIR ...`.

Each DIR was written by eval.compare, its files of samples with it, on a task whose right thoughts are known. Writes
`losses.md` and `losses.csv` into each: a row an arm, shares of samples with their standard errors over problems.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from eval.accuracy.statistics import standard_error
from eval.accuracy.store import read
from eval.accuracy.tasks import Task
from eval.compare import entries, written

END_OF_THOUGHTS = "</think>"


@dataclass(frozen=True)
class Losses:
    """Of one arm: a share and its standard error each."""

    arm: str
    right: tuple[float, float]  #: right to the last token
    after: list[tuple[float, float]]  #: first wrong after that many compressions, from 0 to the last where one was


def right_texts(task: Task) -> dict[str, list[str]]:
    """The only right text of each problem, token by token. Raises EvalError for a task whose problems have many."""
    if not task.thoughts:
        raise EvalError("the task has no thoughts that alone are right; only the small reasoners' tasks have")
    return {
        problem.id: [*task.thoughts[problem.id].split(), END_OF_THOUGHTS, *str(problem.expected).split()]
        for problem in task.problems
    }


def first_wrong(right: Sequence[str], row: Mapping[str, Any]) -> int | None:
    """Which token of a sample is the first wrong one, counted from 0; None if all are right."""
    words = [*row["thoughts"].split(), END_OF_THOUGHTS, *row["said"].replace("<eos>", " ").split()]
    if words == list(right):
        return None
    return next((i for i, word in enumerate(right) if i >= len(words) or words[i] != word), len(right))


def compressions_before(token: int, receipt: Mapping[str, Any]) -> int:
    """Compressions whose loss the choice of this token could feel.

    The forward pass that gives token i has computed the entries 0 to i - 1, so a compression on date d is felt from
    token d + 1 on.
    """
    budget, event = entries.budget_of(receipt), 0
    for count in range(receipt["compressions"]):
        date = budget.next_due(event)
        if date >= token:
            return count
        event = budget.compressions_due(date)
    return int(receipt["compressions"])


def of_arm(arm: str, rows: Sequence[Mapping[str, Any]], right: Mapping[str, list[str]]) -> Losses:
    """Of an arm's samples, beside the right text of each problem."""
    marks: dict[str, list[int | None]] = {}
    for row in rows:
        token = first_wrong(right[row["problem"]], row)
        after = None if token is None else compressions_before(token, row["receipt"])
        marks.setdefault(row["problem"], []).append(after)

    def share(of: int | None) -> tuple[float, float]:
        shares = [fmean(mark == of for mark in each) for each in marks.values()]
        return fmean(shares), standard_error(shares)

    last = max((mark for each in marks.values() for mark in each if mark is not None), default=0)
    return Losses(arm, share(None), [share(after) for after in range(last + 1)])


def of_folder(directory: Path) -> list[Losses]:
    """Raises OSError, ValueError or EvalError if it has no samples, or of another task."""
    said, summary = written.said(directory), written.summary(directory)
    count = max(int(row["problems"]) for row in summary)
    right = right_texts(tasks.find(said["task"], count, said["problem_seed"]))
    return [of_arm(row["arm"], _samples(directory / f"{row['arm']}.jsonl", right), right) for row in summary]


def _samples(path: Path, problems: Container[str]) -> list[dict[str, Any]]:
    if not path.exists():
        raise EvalError(f"{path} is not there; losses are read from samples, which only a run leaves")
    return [row for row in read(path)[1] if row["problem"] in problems]


def markdown(found: Sequence[Losses]) -> str:
    """Percent of samples; a dot where there is none."""
    columns = max(len(one.after) for one in found)
    lines = [
        f"| arm | all right | {' | '.join(f'after {n}' for n in range(columns))} |",
        "|---" * (columns + 2) + "|",
    ]
    for one in found:
        shares = [one.right, *one.after, *[(0.0, 0.0)] * (columns - len(one.after))]
        cells = [f"{100 * share:.1f} ± {100 * error:.1f}" if share else "·" for share, error in shares]
        lines.append(f"| `{one.arm}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _write(found: Sequence[Losses], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "compressions", "share", "error"])
        for one in found:
            for name, (share, error) in [("right", one.right), *enumerate(one.after)]:
                writer.writerow([one.arm, name, f"{share:.6g}", f"{error:.6g}"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.compare.losses", description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, nargs="+", required=True, metavar="DIR", help="with its samples")
    for directory in parser.parse_args(argv).results:
        try:
            found = of_folder(directory)
        except (EvalError, OSError, ValueError, KeyError) as error:
            print(f"eval.compare.losses: {error}", file=sys.stderr)
            return 1
        _write(found, directory / "losses.csv")
        (directory / "losses.md").write_text(markdown(found), encoding="utf-8")
        print(f"{directory}: percent of samples whose first wrong token came after that many compressions")
        print(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
