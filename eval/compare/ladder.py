"""Several comparisons beside each other: `python -m eval.compare.ladder --results DIR ... --out DIR`.

Each DIR was written by eval.compare, all with the same policies; writes `ladder.md` (a table, a column a task and
number of KV entries held) and `ladder.png`, `ladder.svg` (a panel a task).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import plotting
from eval.compare import fair, written
from eval.compare.arms import FULL
from eval.compare.fair import Column
from eval.compare.plots import style

#: Below the table.
LEGEND = (
    "Over each column: KV entries of generated tokens that a request held, mean / peak, of the column's best policy. "
    "Bold: the best, and all that are not worse by more than the standard error of the difference, taken problem "
    "by problem."
)


@dataclass(frozen=True)
class Comparison:
    task: str
    rows: list[dict[str, str]]  #: of its summary.csv
    shares: dict[str, dict[str, float]]  #: of its problems.csv

    @property
    def full(self) -> dict[str, str]:
        return next(row for row in self.rows if row["policy"] == FULL)

    @property
    def level(self) -> str:
        return self.task.partition(":")[2] or self.task

    @property
    def columns(self) -> dict[Column, list[fair.Row]]:
        return fair.columns(self.rows)


def load(directory: Path) -> Comparison:
    """Raises OSError or ValueError if eval.compare has not written a whole table there."""
    task, rows = written.said(directory)["task"], written.summary(directory)
    if len({(row["policy"], *fair.column_of(row)[2:]) for row in rows}) < len(rows):
        raise ValueError(f"{directory / 'summary.csv'} has several intervals, of which a table can show one")
    if not any(row["policy"] == FULL for row in rows):
        raise ValueError(f"{directory / 'summary.csv'} has no row of the full KV cache")
    shares = written.problems(directory)
    lacking = [row["arm"] for row in rows if row["arm"] not in shares]
    if lacking:
        raise ValueError(f"{directory / 'problems.csv'} has no column {lacking[0]}; write it again with eval.compare")
    return Comparison(task, rows, shares)


def policies(found: Sequence[Comparison]) -> list[str]:
    """As they stand in the tables, without `full`."""
    return list(dict.fromkeys(row["policy"] for one in found for row in one.rows if row["policy"] != FULL))


def markdown(found: Sequence[Comparison]) -> str:
    """Accuracy in percent with its standard error, a column for each number of KV entries held."""
    columns = [(one, column, rows) for one in found for column, rows in one.columns.items()]
    heads = [f"{one.level}: {fair.entries(fair.leader(rows))}" for one, _, rows in columns]
    lines = [
        "| policy | " + " | ".join(heads) + " |",
        "|---" * (len(columns) + 1) + "|",
        "| full KV | " + " | ".join(_cell(one.full) for one, _, _ in columns) + " |",
    ]
    for policy in policies(found):
        cells = []
        for one, _, rows in columns:
            row = next((row for row in rows if row["policy"] == policy), None)
            if row is None:
                cells.append("not run")
                continue
            text = _cell(row) + (" †" if row in fair.others(rows) else "")
            cells.append(f"**{text}**" if row["arm"] in fair.ties(rows, one.shares) else text)
        lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    lines.append("| setting | " + " | ".join(fair.setting(column) for _, column, _ in columns) + " |")
    return "\n".join([*lines, "", LEGEND, *_others(columns)]) + "\n"


def _others(columns: Sequence[tuple[Comparison, Column, list[fair.Row]]]) -> list[str]:
    """What stands below the table of cells that are not at the KV entries over their column."""
    told = [
        f"`{row['policy']}` {fair.entries(row)} ({one.level}, {fair.setting(column)})"
        for one, column, rows in columns
        for row in fair.others(rows)
    ]
    return ["", f"† Held more than 1 % more or fewer KV entries: {'; '.join(told)}."] if told else []


def _cell(row: fair.Row) -> str:
    return f"{100 * float(row['accuracy']):.1f} ± {100 * float(row['error']):.1f}"


def plot(found: Sequence[Comparison], out: Path) -> list[Path]:
    """Bars of accuracy, a panel a task; paler: fewer KV entries held. Whiskers are 95 % intervals."""
    pyplot = plotting.pyplot()
    if pyplot is None:
        return []
    from matplotlib.patches import Patch

    names = policies(found)
    figure, axes = pyplot.subplots(
        1, len(found), figsize=(1.2 + 2.9 * len(found), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    for axis, one in zip(axes[0], found, strict=True):
        columns = sorted(one.columns.values(), key=lambda rows: -(fair.number(fair.leader(rows), "mean_entries") or 0))
        axis.axhline(float(one.full["accuracy"]), color="black", lw=1, ls="--")
        told = []
        for j, rows in enumerate(columns):
            strength = 1 - 0.7 * j / max(1, len(columns) - 1)
            told.append(Patch(color="0.3", alpha=strength, label=fair.entries(fair.leader(rows))))
            for row in rows:
                _bar(axis, row, names.index(row["policy"]), j, len(columns), strength)
        axis.legend(
            handles=told, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(told), frameon=False
        )
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_title(f"{one.task}, {one.full['problems']} problems", fontsize=9, pad=20)
        axis.set_ylim(0, 1.05)
        axis.grid(axis="y", alpha=0.25)
    axes[0][0].set_ylabel("accuracy (dashed: full KV)")
    figure.supxlabel("beside the bars' shades: KV entries held, mean / peak; whiskers: 95 % intervals", fontsize=8)
    written = [out / f"ladder.{suffix}" for suffix in ("png", "svg")]
    for path in written:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return written


def _bar(axis: Any, row: fair.Row, place: int, part: int, parts: int, strength: float) -> None:
    value, width = float(row["accuracy"]), 0.8 / parts
    whisker = [[max(0.0, value - float(row["accuracy_low"]))], [max(0.0, float(row["accuracy_high"]) - value)]]
    axis.bar(
        place + (part - (parts - 1) / 2) * width,
        value,
        width,
        yerr=whisker,
        capsize=2,
        error_kw={"lw": 0.8},
        color=style(row["policy"], place)[0],
        alpha=strength,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.compare.ladder", description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, nargs="+", required=True, metavar="DIR", help="of eval.compare")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(argv)
    try:
        found = [load(directory) for directory in options.results]
    except (OSError, ValueError, KeyError) as error:
        print(f"eval.compare.ladder: --results needs what eval.compare wrote: {error}", file=sys.stderr)
        return 1
    if not policies(found):
        print("eval.compare.ladder: no policy was measured in --results, only the full KV cache", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ladder.md").write_text(markdown(found))
    print(markdown(found))
    for path in plot(found, options.out):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
