"""What a comparison's samples say: a row an arm, differences problem by problem, 95 % intervals."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from eval.accuracy.errors import EvalError
from eval.accuracy.statistics import paired, report
from eval.accuracy.store import read
from eval.compare import entries, fair
from eval.compare.arms import FULL, Arm

COLUMNS = (
    *("arm", "policy", "interval", "window", "ratio", "min_kept", "problems", "samples"),
    *("accuracy", "error", "accuracy_low", "accuracy_high"),
    *("to_full", "to_full_error", "to_full_low", "to_full_high"),
    *("no_answer", "truncated", "looping", "compressed", "tokens"),
    *("mean_entries", "peak_entries", "held_entries", "mean_share", "peak_share", "held_share"),
    *("mean_bytes", "peak_bytes", "held_bytes", "tok_s"),
)
Z = 1.96  #: of a 95 % interval
#: What arms must have in common, of their configuration.
JUDGED_BY = ("model_sha", "grader_sha", "data_sha256", "measure", "graders")

Samples = dict[Arm, list[dict[str, Any]]]


def samples_of(arm: Arm, out: Path) -> list[dict[str, Any]]:
    path = out / f"{arm.name}.jsonl"
    return read(path)[1] if path.exists() else []


def complete(every: Sequence[Arm], out: Path, problems: Sequence[str], samples: int) -> Samples:
    """The samples of these problems, of the arms that have them all. Raises EvalError if they don't belong together."""
    found, judges = {}, {}
    for arm in every:
        rows = [row for row in samples_of(arm, out) if row["problem"] in set(problems) and row["sample"] < samples]
        if len(rows) == len(problems) * samples:
            found[arm] = rows
            config, _ = read(out / f"{arm.name}.jsonl")
            judges[arm.name] = {name: (config or {}).get(name) for name in JUDGED_BY}
    if len({json.dumps(judge, sort_keys=True) for judge in judges.values()}) > 1:
        raise EvalError(
            f"the arms in {out} are of different models, problems or graders ({judges}); choose another --out"
        )
    return found


def at_once(found: Samples, out: Path) -> dict[Arm, int]:
    """How many samples of each arm were asked for at once, when its file was begun."""
    return {arm: min(len(rows), _said(arm, out)["concurrency"]) for arm, rows in found.items()}


def _said(arm: Arm, out: Path) -> dict[str, Any]:
    """Of the first line of its file, what is there beside the configuration."""
    with (out / f"{arm.name}.jsonl").open(encoding="utf-8") as file:
        said: dict[str, Any] = json.loads(file.readline())["said"]
    return said


def summary(found: Samples, concurrency: Mapping[Arm, int], entry_bytes: int | None) -> list[dict[str, Any]]:
    """A row an arm.

    Args:
        concurrency: samples of an arm that were asked for at once.
        entry_bytes: of one token's KV in all layers; None where that is not known.
    """
    full = shares(next((rows for arm, rows in found.items() if arm.policy == FULL), []))
    return [_row(arm, rows, full, concurrency[arm], entry_bytes) for arm, rows in found.items()]


def shares(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of right samples, problem by problem."""
    marks: dict[str, list[bool]] = {}
    for row in rows:
        marks.setdefault(row["problem"], []).append(row["correct"])
    return {problem: fmean(each) for problem, each in marks.items()}


def wilson(share: float, error: float, count: int) -> tuple[float, float]:
    """95 % interval (Wilson's) of a mean of `count` values from 0 to 1 with this standard error.

    As of the number of coin tosses that would have the same error; where all are alike, of `count` tosses.
    """
    spread = share * (1 - share)
    tosses = spread / error**2 if spread > 0 and error > 0 else float(count)
    centre = (share + Z**2 / (2 * tosses)) / (1 + Z**2 / tosses)
    half = Z * math.sqrt(spread / tosses + Z**2 / (4 * tosses**2)) / (1 + Z**2 / tosses)
    return max(0.0, centre - half), min(1.0, centre + half)


def held(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """KV entries that samples held, means over samples: over their lives, at the peak, at the end; and as shares of
    what they would have held uncompressed. None where a receipt does not tell."""
    saws, ends, lengths = [], [], []
    for row in rows:
        receipt, tokens = row["receipt"], row["tokens"]
        saws.append(entries.of_receipt(receipt) if receipt else entries.uncompressed(tokens))
        ends.append(receipt["held"] if receipt else tokens)
        lengths.append(receipt["generated"] if receipt else tokens)
    known = [saw for saw in saws if saw is not None]
    whole, full = len(known) == len(saws), entries.uncompressed(fmean(lengths))
    mean = fmean(saw.mean for saw in known) if whole else None
    peak = fmean(saw.peak for saw in known) if whole else None
    return {
        "mean_entries": mean,
        "peak_entries": peak,
        "held_entries": fmean(ends),
        "mean_share": _times(mean, 1 / full.mean),
        "peak_share": _times(peak, 1 / full.peak),
        "held_share": fmean(ends) / full.end,
    }


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor


def _row(
    arm: Arm, rows: Sequence[dict[str, Any]], full: dict[str, float], concurrency: int, entry_bytes: int | None
) -> dict[str, Any]:
    found = report(rows)
    low, high = wilson(found.accuracy, found.error, found.problems)
    difference, error, _ = paired(shares(rows), full)
    kv = held(rows)
    return {
        "arm": arm.name,
        "policy": arm.label,
        "interval": arm.interval,
        "window": arm.window,
        "ratio": arm.ratio,
        "min_kept": arm.min_kept,
        "problems": found.problems,
        "samples": found.samples,
        "accuracy": found.accuracy,
        "error": found.error,
        "accuracy_low": low,
        "accuracy_high": high,
        "to_full": difference,
        "to_full_error": error,
        "to_full_low": max(-1.0, difference - Z * error),
        "to_full_high": min(1.0, difference + Z * error),
        "no_answer": found.no_answer,
        "truncated": found.truncated,
        "looping": found.looping,
        "compressed": found.compressed,
        "tokens": found.tokens,
        **kv,
        **{f"{name}_bytes": _times(kv[f"{name}_entries"], entry_bytes) for name in ("mean", "peak", "held")},
        # Of a server that is kept busy with `concurrency` samples.
        "tok_s": concurrency * sum(r["tokens"] for r in rows) / sum(r["seconds"] for r in rows),
    }


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def write_problems(found: Samples, path: Path) -> None:
    """Share of right samples, a row a problem and a column an arm: what pairs are made of."""
    columns = {arm.name: shares(rows) for arm, rows in found.items()}
    problems = list(dict.fromkeys(problem for column in columns.values() for problem in column))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["problem", *columns])
        writer.writerows([problem, *(f"{column[problem]:g}" for column in columns.values())] for problem in problems)


def write_conditions(found: Samples, out: Path) -> None:
    """`conditions.json`: configuration, commit, versions and machine of every arm; what all share stands once."""
    each = {}
    for arm in found:
        config, _ = read(out / f"{arm.name}.jsonl")
        each[arm.name] = {**_said(arm, out), **(config or {})}
    shared = {
        name: value
        for name, value in next(iter(each.values()), {}).items()
        if all(name in other and other[name] == value for other in each.values())
    }
    arms = {arm: {k: v for k, v in values.items() if k not in shared} for arm, values in each.items()}
    (out / "conditions.json").write_text(json.dumps({"all": shared, "arms": arms}, indent=1) + "\n")


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The table of a terminal, column by column of equal settings, and what may not be compared in it."""
    grouped = fair.columns(rows)
    every = [row for row in rows if row["policy"] == FULL] + [row for column in grouped.values() for row in column]
    wide = max([24, *(len(row["arm"]) for row in every)])
    lines = [
        f"{'arm':<{wide}} {'accuracy (95 %)':>21} {'to full (95 %)':>24} {'KV mean':>13} {'peak':>12} {'end':>12} "
        f"{'tokens':>7} {'tok/s':>7}"
    ]
    for row in every:
        kv = [_entries(row, name) for name in ("mean", "peak", "held")]
        lines.append(
            f"{row['arm']:<{wide}} {row['accuracy']:>7.3f} ({row['accuracy_low']:.3f}-{row['accuracy_high']:.3f}) "
            f"{row['to_full']:>+8.3f} ({row['to_full_low']:+.3f}, {row['to_full_high']:+.3f}) "
            f"{kv[0]:>13} {kv[1]:>12} {kv[2]:>12} {row['tokens']:>7.0f} {row['tok_s']:>7.0f}"
        )
    for column in grouped.values():
        best = fair.leader(column)
        lines += [
            f"{row['arm']} held {fair.entries(row)} KV entries (mean / peak), {best['arm']} {fair.entries(best)}: "
            "not at equal KV"
            for row in fair.others(column)
        ]
    return "\n".join(lines)


def _entries(row: dict[str, Any], name: str) -> str:
    count, share = row[f"{name}_entries"], row[f"{name}_share"]
    return "not known" if count is None else f"{count:.0f} ({share:.1%})"
