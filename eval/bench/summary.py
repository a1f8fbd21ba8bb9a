"""summary.csv: medians over repetitions, and ratios to the baseline arm, taken pair by pair.

A pair is an arm and the baseline on one workload in one repetition, minutes apart on one machine; a ratio is taken
inside each pair and the median over pairs is reported. A pair with an error on either side is left out and counted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.bench import table
from eval.bench.statistics import median
from eval.bench.table import Row

#: Reported as medians of the arm's own repetitions.
MEDIANS = (
    *("tok_s", "tok_s_full", "running_mean", "running_peak", "running_mean_full", "waiting_mean"),
    *("ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s", "gap_max_s", "latency_p50_s", "latency_p99_s"),
    *("retractions", "retracted_share", "compressed_share", "compressions_mean", "late", "held_mean"),
    *("cached_tokens", "kv_tokens_mean", "kv_tokens_peak", "kv_bytes_mean", "kv_bytes_peak"),
    *("server_cpu_s", "client_cpu_s", "other_cpu_s"),
)
#: Reported as medians of ratios to the baseline, pair by pair.
RATIOS = (
    *("tok_s", "tok_s_full", "running_mean", "running_peak", "running_mean_full", "ttft_p50_s", "itl_p50_s"),
    *("itl_p99_s", "latency_p50_s", "cached_tokens", "kv_tokens_peak"),
)
#: Conditions that are the same in all rows of one workload and arm, repeated for whoever reads this file alone.
_SAID = (
    *("concurrency", "n", "prompt_tokens", "output_tokens", "samples", "rate", "pool_tokens", "pool_fraction"),
    *("rpc_interval", "rpc_window", "rpc_ratio", "rpc_scope", "model", "dtype", "device", "cpu", "cores", "gpu"),
    *("threads", "sglang_version", "sglang_rpc_version", "commit", "dirty", "server"),
)


def columns() -> list[str]:
    ratios = [f"{name}_{part}" for name in RATIOS for part in ("ratio", "ratio_low", "ratio_high")]
    return ["arm", "workload", "repetitions", "errors", "baseline", "pairs", "pairs_dropped", *ratios, *MEDIANS, *_SAID]


def summarise(rows: Iterable[Row], baseline: str) -> list[dict[str, Any]]:
    """One dict a (workload, arm), in the order of the file; the columns of `columns()`."""
    latest = table.latest(rows)
    found = []
    for workload, arm in dict.fromkeys((row["workload"], row["arm"]) for row in latest.values()):
        mine = {k[2]: row for k, row in latest.items() if k[:2] == (arm, workload)}
        theirs = {k[2]: row for k, row in latest.items() if k[:2] == (baseline, workload)}
        good = [row for row in mine.values() if is_good(row)]
        both = sorted(mine.keys() & theirs.keys())
        pairs = [(mine[r], theirs[r]) for r in both if is_good(mine[r]) and is_good(theirs[r])]
        entry: dict[str, Any] = {
            "arm": arm,
            "workload": workload,
            "repetitions": len(mine),
            "errors": sum(int(row["errors"]) for row in mine.values()),
            "baseline": baseline,
            "pairs": len(pairs),
            "pairs_dropped": len(both) - len(pairs),
        }
        for name in RATIOS:
            ratios = pair_ratios(pairs, name)
            entry[f"{name}_ratio"] = median(ratios)
            entry[f"{name}_ratio_low"] = min(ratios, default=None)
            entry[f"{name}_ratio_high"] = max(ratios, default=None)
        for name in MEDIANS:
            entry[name] = median(numbers(good, name))
        last = list(mine.values())[-1]
        found.append(entry | {name: last[name] for name in _SAID})
    return found


def is_good(row: Row) -> bool:
    return row["errors"] == "0"


def pair_ratios(pairs: Iterable[tuple[Row, Row]], name: str) -> list[float]:
    """mine / theirs, for the pairs in which both have the number and theirs is not 0."""
    found = []
    for mine, theirs in pairs:
        if mine[name] and theirs[name] and float(theirs[name]) != 0:
            found.append(float(mine[name]) / float(theirs[name]))
    return found


def numbers(rows: Iterable[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]


def write(path: Path, summary: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.as_text(entry) for entry in summary)


_SHOWN = (
    ("arm", "arm"),
    ("tok/s", "tok_s"),
    ("x", "tok_s_ratio"),
    ("at once", "running_mean"),
    ("x", "running_mean_ratio"),
    ("peak", "running_peak"),
    ("TTFT p50", "ttft_p50_s"),
    ("ITL p50 ms", "itl_p50_s"),
    ("ITL p99 ms", "itl_p99_s"),
    ("retr.", "retractions"),
    ("compr.", "compressed_share"),
    ("cached", "cached_tokens"),
    ("KV MB peak", "kv_bytes_peak"),
    ("errors", "errors"),
    ("pairs", "pairs"),
)


def as_text(summary: Sequence[dict[str, Any]]) -> str:
    """The table that is printed at the end: a block a workload, an arm a line."""
    if not summary:
        return "no results yet"
    blocks = []
    for workload in dict.fromkeys(entry["workload"] for entry in summary):
        entries = [entry for entry in summary if entry["workload"] == workload]
        rows = [[title for title, _ in _SHOWN]]
        rows += [[_shown(title, entry[name]) for title, name in _SHOWN] for entry in entries]
        widths = [max(len(row[i]) for row in rows) for i in range(len(_SHOWN))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        pool, baseline = float(entries[0]["pool_fraction"]), entries[0]["baseline"]
        head = f"{workload}  (pool {pool:g} of the load; x: ratio to {baseline}, pair by pair, median)"
        blocks.append("\n".join([head, *lines]))
    return "\n\n".join(blocks)


def _shown(title: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, str):
        return value
    if title == "x":
        return f"{value:.3f}"
    if title.endswith("ms"):
        return f"{1000 * value:.1f}"
    if title.startswith("KV MB"):
        return f"{value / 1e6:.2f}"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
