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
from eval.compare.arms import FULL, Arm

COLUMNS = (
    *("arm", "policy", "interval", "window", "ratio", "problems", "samples"),
    *("accuracy", "error", "accuracy_low", "accuracy_high"),
    *("to_full", "to_full_error", "to_full_low", "to_full_high"),
    *("no_answer", "truncated", "looping", "compressed", "tokens"),
    *("held_share", "peak_share", "held_bytes", "peak_bytes", "tok_s"),
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


def peak(row: dict[str, Any]) -> int:
    """Most generated KV entries that a sample held at once: at its end, or just before its last due compression."""
    receipt = row["receipt"]
    done = receipt["compressions"] - receipt["early"]
    interval, window = receipt["interval"], receipt["window"]
    before_last = (done - 1) * int(interval / receipt["ratio"]) + window + interval if done > 0 else 0
    return max(receipt["held"], before_last)


def _row(
    arm: Arm, rows: Sequence[dict[str, Any]], full: dict[str, float], concurrency: int, entry_bytes: int | None
) -> dict[str, Any]:
    found = report(rows)
    low, high = wilson(found.accuracy, found.error, found.problems)
    difference, error, _ = paired(shares(rows), full)
    receipts = [row for row in rows if row["receipt"]]
    if arm.policy == FULL or not receipts:
        held = most = fmean(row["tokens"] for row in rows)
        held_share = peak_share = 1.0
    else:
        held, most = (fmean(of) for of in ([row["receipt"]["held"] for row in receipts], map(peak, receipts)))
        generated = fmean(row["receipt"]["generated"] for row in receipts)
        held_share, peak_share = held / generated, most / generated
    return {
        "arm": arm.name,
        "policy": arm.policy,
        "interval": arm.interval,
        "window": arm.window,
        "ratio": arm.ratio,
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
        "held_share": held_share,
        "peak_share": peak_share,
        "held_bytes": None if entry_bytes is None else held * entry_bytes,
        "peak_bytes": None if entry_bytes is None else most * entry_bytes,
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
    lines = [
        f"{'arm':<24} {'accuracy (95 %)':>21} {'to full (95 %)':>24} {'KV held':>8} {'peak':>6} {'tokens':>7} "
        f"{'tok/s':>7}"
    ]
    for row in rows:
        lines.append(
            f"{row['arm']:<24} {row['accuracy']:>7.3f} ({row['accuracy_low']:.3f}-{row['accuracy_high']:.3f}) "
            f"{row['to_full']:>+8.3f} ({row['to_full_low']:+.3f}, {row['to_full_high']:+.3f}) "
            f"{row['held_share']:>7.1%} {row['peak_share']:>6.1%} {row['tokens']:>7.0f} {row['tok_s']:>7.0f}"
        )
    return "\n".join(lines)
