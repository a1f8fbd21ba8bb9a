"""Entropy by n, a line a group of texts; how much of what was kept is repetition, a bar a choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import plotting
from eval.redundancy import kept
from eval.redundancy.measure import Group


def entropies(summary: Sequence[Group], out: Path, conditions: str) -> list[Path]:
    """Bars of one standard error; the files written, none where matplotlib is not installed."""
    pyplot = plotting.pyplot()
    if pyplot is None:
        return []
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name in dict.fromkeys(row.group for row in summary):
        mine = [row for row in summary if row.group == name]
        texts = "1 text" if mine[0].texts == 1 else f"{mine[0].texts} texts"
        x, y, error = [row.n for row in mine], [row.entropy for row in mine], [row.error for row in mine]
        axis.errorbar(x, y, yerr=error, marker="o", capsize=3, label=f"{name} ({texts})")
    axis.set(xlabel="n", ylabel="entropy of n-grams, bits")
    axis.set_title(conditions, fontsize=8)
    axis.set_xticks(sorted({row.n for row in summary}))
    return _save(pyplot, figure, axis, out, "entropy")


def repeats(summary: Sequence[kept.Summary], out: Path) -> list[Path]:
    """As `entropies`."""
    pyplot = plotting.pyplot()
    if pyplot is None:
        return []
    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    orders, width = sorted({row.n for row in summary}), 0.8 / len(kept.CHOICES)
    for number, choice in enumerate(kept.CHOICES):
        mine = [row for row in summary if row.choice == choice]
        x = [place + number * width for place in range(len(orders))]
        error = [row.repeated_error for row in mine]
        axis.bar(x, [row.repeated for row in mine], 0.9 * width, yerr=error, capsize=2, label=choice)
    axis.set(xlabel="n", ylabel="share of tokens whose n-gram had been there before")
    axis.set_title(f"{summary[0].requests} requests, tokens before the last compression's window", fontsize=8)
    axis.set_xticks([place + 1.5 * width for place in range(len(orders))], [str(n) for n in orders])
    return _save(pyplot, figure, axis, out, "kept")


def _save(pyplot: Any, figure: Any, axis: Any, out: Path, name: str) -> list[Path]:
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", alpha=0.25)
    axis.legend(fontsize=8)
    written = [out / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in written:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return written
