"""Accuracy against memory: the picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import plotting
from eval.compare import fair
from eval.compare.arms import FULL
from eval.compare.fair import Row

#: A policy looks the same in every plot.
STYLES = {
    FULL: ("black", "*"),
    "rpc": ("C3", "o"),
    "snapkv": ("C1", "s"),
    "peak": ("C4", "h"),
    "rkv": ("C8", "D"),
    "h2o": ("C0", "^"),
    "tova": ("C9", "v"),
    "streaming": ("C2", "P"),
    "random": ("C7", "X"),
}


PANELS = {
    "mean_entries": "generated KV entries held, mean over a request's life",
    "peak_entries": "generated KV entries held, peak",
}


def style(policy: str, number: int) -> tuple[str, str]:
    """Colour and marker; of a policy that is not built in by its number in the plot."""
    return STYLES.get(policy, (f"C{number % 10}", "<>dp8"[number % 5]))


def pareto(rows: Sequence[Row], column: str) -> list[Row]:
    """Those that no other beats in accuracy with as few entries of this column, fewest first."""
    best, front = -1.0, []
    most = max(_entries(row, column) for row in rows)
    # To a percent: one budget is slightly other entries of a text that went wrong and ended elsewhere.
    for row in sorted(rows, key=lambda row: (round(_entries(row, column) / most, 2), -float(row["accuracy"]))):
        if float(row["accuracy"]) > best:
            best = float(row["accuracy"])
            front.append(row)
    return front


def plot(rows: Sequence[Row], out: Path, title: str) -> list[Path]:
    """Accuracy against KV entries held, mean and peak: a mark an arm, 95 % bars, and the line of those none beats."""
    pyplot = plotting.pyplot()
    if pyplot is None:
        return []
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axis, (column, words) in zip(axes, PANELS.items(), strict=True):
        _panel(axis, [row for row in rows if fair.number(row, column) is not None], column)
        axis.set(xlabel=f"{words}\n(side by side: same budget)", ylim=(-0.03, 1.03))
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("accuracy")
    axes[0].set_title(title, fontsize=8, loc="left")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    written = [out / f"accuracy_by_kv.{suffix}" for suffix in ("png", "svg")]
    for path in written:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return written


def _panel(axis: Any, rows: Sequence[Row], column: str) -> None:
    if not rows:
        return
    front = pareto(rows, column)
    most = max(_entries(row, column) for row in rows)
    x, y = [_entries(row, column) for row in front], [float(row["accuracy"]) for row in front]
    axis.plot(x, y, color="0.8", lw=5, label="Pareto front")
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    for number, policy in enumerate(policies):
        colour, marker = style(policy, number)
        mine = sorted((row for row in rows if row["policy"] == policy), key=lambda row: _entries(row, column))
        # Side by side where several have the same budget, or one mark would hide the others.
        aside = 0.0 if policy == FULL else 0.007 * most * (number - len(policies) / 2)
        value, low, high = (
            [float(row[name]) for row in mine] for name in ("accuracy", "accuracy_low", "accuracy_high")
        )
        bars = [
            [max(0.0, a - b) for a, b in zip(value, low, strict=True)],
            [max(0.0, b - a) for a, b in zip(value, high, strict=True)],
        ]
        x = [_entries(row, column) + aside for row in mine]
        axis.errorbar(x, value, yerr=bars, color=colour, marker=marker, capsize=3, lw=1, label=policy)


def _entries(row: Row, column: str) -> float:
    value = fair.number(row, column)
    assert value is not None  # rows without one are left out
    return value
