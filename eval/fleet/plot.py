"""The picture of a simulated fleet, drawn from its table alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from eval import plotting
from eval.fleet.report import LEFT_OUT

PANELS = {
    "requests_s": "requests/s",
    "ttft_p99_s": "time to first token, p99 [s]",
    "latency_p99_s": "time to last token, p99 [s]",
    "kv_mean_share": "share of a replica's pool in use, mean",
}
COLOURS = {"off": "C7", "rpc": "C3"}
NAMES = {"off": "SGLang", "rpc": "RPC"}


def draw(table: Path) -> list[Path]:
    """A panel per number, over the replicas, or, of one number of replicas, over the routers."""
    pyplot = plotting.pyplot()
    if pyplot is None:
        return []
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for axis, (column, words) in zip(axes.flat, PANELS.items(), strict=True):
        _panel(axis, rows, column)
        axis.set_ylabel(words)
        axis.grid(alpha=0.25)
        if column.endswith("_p99_s"):
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
    axes.flat[0].set_title(_conditions(rows[0], rows[-1]), fontsize=8, loc="left")
    axes.flat[0].legend(fontsize=8)
    figure.supxlabel(f"Simulated. Left out: {LEFT_OUT[0]}; more in eval/README.md", fontsize=7)
    written = [table.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in written:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return written


def _panel(axis: Any, rows: list[dict[str, str]], column: str) -> None:
    """A line per arm, output length and router."""
    over = "replicas" if len({row["replicas"] for row in rows}) > 1 else "router"
    others = [name for name in ("output_tokens", "router", "replicas") if name != over]
    lengths = list(dict.fromkeys(row["output_tokens"] for row in rows))
    lines: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        lines.setdefault((row["arm"], *(row[name] for name in others)), []).append(row)
    for (arm, *_), mine in lines.items():
        length = mine[0]["output_tokens"]
        x: list[Any] = [int(row[over]) if over == "replicas" else row[over] for row in mine]
        label = f"{NAMES[arm]}, {length} tokens" + ("" if over == "router" else f", {mine[0]['router']}")
        # Routers have no order that a line could follow.
        style = "none" if over == "router" else ["-", "--", ":", "-."][lengths.index(length) % 4]
        axis.plot(x, [float(row[column]) for row in mine], ls=style, marker="o", ms=4, color=COLOURS[arm], label=label)
    axis.set_xlabel(over)


def _conditions(off: dict[str, str], rpc: dict[str, str]) -> str:
    load = f"{off['clients']} clients" if off["clients"] else f"{off['rate']} requests/s"
    lengths = f"unknown, limit {off['limit']}" if off["limit"] else "known"
    return (
        f"{load}, prompts of {off['prompt']} ({off['shared']} shared), lengths {lengths}, spread {off['spread']}\n"
        f"pool {off['pool']} per replica, P={rpc['rpc_interval']} R={rpc['rpc_window']} c={rpc['rpc_ratio']}"
    )
