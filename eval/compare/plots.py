"""Accuracy against memory: the picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.compare.arms import FULL

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


def pareto(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no other beats in accuracy with as little KV at its peak, least KV first."""
    best, front = -1.0, []
    # To a percent: one budget is a slightly other share of a text that went wrong and ended elsewhere.
    for row in sorted(rows, key=lambda row: (round(row["peak_share"], 2), -row["accuracy"])):
        if row["accuracy"] > best:
            best = row["accuracy"]
            front.append(row)
    return front


def plot(rows: Sequence[dict[str, Any]], out: Path, title: str) -> list[Path]:
    """Accuracy against the most KV held, a mark an arm, 95 % bars, and the line of those that none beats."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install -e '.[bench]')")
        return []
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "eval", "font.size": 9})
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    front = pareto(rows)
    axis.plot([r["peak_share"] for r in front], [r["accuracy"] for r in front], color="0.8", lw=5, label="Pareto front")
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    for number, policy in enumerate(policies):
        colour, marker = STYLES.get(policy, (f"C{number % 10}", "o"))
        mine = sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["peak_share"])
        # Side by side where several have the same budget, or one mark would hide the others.
        aside = 0.0 if policy == FULL else 0.007 * (number - len(policies) / 2)
        x, y = [row["peak_share"] + aside for row in mine], [row["accuracy"] for row in mine]
        bars = [
            [max(0.0, row["accuracy"] - row["accuracy_low"]) for row in mine],
            [max(0.0, row["accuracy_high"] - row["accuracy"]) for row in mine],
        ]
        axis.errorbar(x, y, yerr=bars, color=colour, marker=marker, capsize=3, lw=1, label=policy)
    axis.set(
        xlabel="most generated KV held at once, share (side by side: same budget)",
        ylabel="accuracy",
    )
    axis.set(ylim=(-0.03, 1.03), xlim=(0, 1.05))
    axis.set_title(title, fontsize=8, loc="left")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, ncols=2, loc="center right")
    written = [out / f"accuracy_by_kv.{suffix}" for suffix in ("png", "svg")]
    for path in written:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return written
