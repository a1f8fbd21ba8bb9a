"""Several comparisons beside each other: `python -m eval.compare.ladder --results DIR ... --out DIR`.

Each DIR was written by eval.compare, all with the same policies; writes `ladder.md` (a table, a column a task and
ratio) and `ladder.png`, `ladder.svg` (a panel a task).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.compare import written
from eval.compare.arms import FULL
from eval.compare.plots import STYLES


@dataclass(frozen=True)
class Comparison:
    task: str
    rows: list[dict[str, str]]  #: of its summary.csv

    def of(self, policy: str, ratio: float) -> dict[str, str] | None:
        return next((r for r in self.rows if r["policy"] == policy and float(r["ratio"]) == ratio), None)

    @property
    def full(self) -> dict[str, str]:
        return next(row for row in self.rows if row["policy"] == FULL)


def load(directory: Path) -> Comparison:
    """Raises OSError or ValueError if eval.compare has not written a whole table there."""
    task, rows = written.said(directory)["task"], written.summary(directory)
    if len({(row["policy"], row["ratio"]) for row in rows}) < len(rows):
        raise ValueError(f"{directory / 'summary.csv'} has several intervals, of which a table can show one")
    if not any(row["policy"] == FULL for row in rows):
        raise ValueError(f"{directory / 'summary.csv'} has no row of the full KV cache")
    return Comparison(task, rows)


def policies(found: Sequence[Comparison]) -> list[str]:
    """As they stand in the tables, without `full`."""
    return list(dict.fromkeys(row["policy"] for one in found for row in one.rows if row["policy"] != FULL))


def ratios(found: Sequence[Comparison]) -> list[float]:
    return sorted({float(row["ratio"]) for one in found for row in one.rows if row["policy"] != FULL})


def markdown(found: Sequence[Comparison]) -> str:
    """Accuracy in percent with its standard error; the best policy of a column in bold, with all that tie with it."""
    columns = [(one, ratio) for one in found for ratio in ratios([one])]
    lines = [
        "| policy | " + " | ".join(f"{one.task.partition(':')[2] or one.task}, c = {c:g}" for one, c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        "| full KV | " + " | ".join(_cell(one.full) for one, _ in columns) + " |",
    ]
    for policy in policies(found):
        cells = []
        for one, ratio in columns:
            row = one.of(policy, ratio)
            best = max(float(r["accuracy"]) for p in policies(found) if (r := one.of(p, ratio)) is not None)
            text = "not run" if row is None else _cell(row)
            cells.append(f"**{text}**" if row is not None and 0 < best == float(row["accuracy"]) else text)
        lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    kv = [one.of(policies(found)[0], ratio) for one, ratio in columns]
    lines.append("| KV held, most / end | " + " | ".join(_kv(row) for row in kv) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, str]) -> str:
    return f"{100 * float(row['accuracy']):.1f} ± {100 * float(row['error']):.1f}"


def _kv(row: dict[str, str] | None) -> str:
    return "" if row is None else f"{float(row['peak_share']):.0%} / {float(row['held_share']):.0%}"


def plot(found: Sequence[Comparison], out: Path) -> list[Path]:
    """Bars of accuracy, a panel a task; paler: a higher ratio. Whiskers are 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "eval", "font.size": 9})
    from matplotlib import pyplot

    names, every = policies(found), ratios(found)
    figure, axes = pyplot.subplots(
        1, len(found), figsize=(1.2 + 2.9 * len(found), 3.2), layout="constrained", sharey=True, squeeze=False
    )
    for axis, one in zip(axes[0], found, strict=True):
        own = ratios([one])
        width = 0.8 / len(own)
        axis.axhline(float(one.full["accuracy"]), color="black", lw=1, ls="--")
        for i, policy in enumerate(names):
            for j, ratio in enumerate(own):
                row = one.of(policy, ratio)
                if row is None:
                    continue
                value = float(row["accuracy"])
                whisker = [
                    [max(0.0, value - float(row["accuracy_low"]))],
                    [max(0.0, float(row["accuracy_high"]) - value)],
                ]
                axis.bar(
                    i + (j - (len(own) - 1) / 2) * width,
                    value,
                    width,
                    yerr=whisker,
                    capsize=2,
                    error_kw={"lw": 0.8},
                    color=STYLES.get(policy, ("C0", ""))[0],
                    alpha=_strength(ratio, every),
                )
        axis.set_xticks(range(len(names)), names, rotation=60)
        axis.set_title(f"{one.task}, {one.full['problems']} problems", fontsize=9)
        axis.set_ylim(0, 1.05)
        axis.grid(axis="y", alpha=0.25)
    axes[0][0].set_ylabel("accuracy (dashed: full KV)")
    listed = ", ".join(f"{ratio:g}" for ratio in every)
    figure.supxlabel(f"c = {listed}, paler the higher; whiskers: 95 % intervals", fontsize=8)
    written = [out / f"ladder.{suffix}" for suffix in ("png", "svg")]
    for path in written:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return written


def _strength(ratio: float, every: Sequence[float]) -> float:
    return 1 - 0.7 * every.index(ratio) / max(1, len(every) - 1)


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
