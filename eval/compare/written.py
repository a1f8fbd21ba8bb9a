"""What eval.compare has written, read back: whole, or a sentence that says what is wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.accuracy.errors import EvalError
from eval.compare import entries
from eval.compare.arms import FULL

#: Of a row of `summary.csv`, what its readers take for a number.
NUMBERS = (
    *("ratio", "interval", "window", "min_kept", "accuracy", "error", "accuracy_low", "accuracy_high"),
    *("mean_entries", "peak_entries", "held_entries", "peak_share"),
)


def claim(path: Path, common: Mapping[str, Any], what: str) -> None:
    """Begin a directory with what all in it have in common, or find that it is this one's. Raises EvalError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(common, indent=1) + "\n")
    known = json.loads(path.read_text())
    for name, value in common.items():
        if known.get(name) != value:
            raise EvalError(
                f"{path.parent} holds another {what}: {name} was {known.get(name)!r} and is {value!r} now; "
                "choose another --out"
            )


def said(directory: Path, name: str = "comparison.json") -> dict[str, Any]:
    """Raises OSError without the file, ValueError if it holds no object."""
    path = directory / name
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return found


def summary(directory: Path) -> list[dict[str, str]]:
    """Rows, with the KV entries of a table that was written without them.

    Raises OSError without the file, ValueError if a row of it is not whole.
    """
    path = directory / "summary.csv"
    text = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values() or not text.endswith("\n"):
            raise ValueError(f"{path} is damaged: row {number} is not whole; write it again with eval.compare")
        for name in NUMBERS:
            try:
                float(row.get(name) or 0)
            except ValueError:
                raise ValueError(f"{path} is damaged: {name} of row {number} is {row[name]!r}") from None
    return [row if "mean_entries" in row else with_entries(row) for row in rows]


def with_entries(row: dict[str, str]) -> dict[str, str]:
    """A row of a table from before these columns: as of one request of its mean length, compressed on all dates."""
    if not {"tokens", "interval", "window", "ratio", "peak_share", "held_share"} <= row.keys():
        return {**row, "mean_entries": "", "peak_entries": "", "held_entries": ""}
    tokens = float(row["tokens"])
    full = entries.uncompressed(tokens).mean
    mean = full if row["policy"] == FULL else entries.mean_at(entries.budget_of(row), tokens)
    added = {
        "min_kept": 0.0,
        "mean_entries": mean,
        "peak_entries": float(row["peak_share"]) * tokens,
        "held_entries": float(row["held_share"]) * tokens,
        "mean_share": mean / full,
    }
    return {**row, **{name: f"{value:.6g}" for name, value in added.items()}}


def problems(directory: Path) -> dict[str, dict[str, float]]:
    """Share of right samples by arm, problem by problem. Raises OSError without `problems.csv`, ValueError if it is
    damaged."""
    path = directory / "problems.csv"
    lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    try:
        (_, *arms), rows = lines[0], lines[1:]
        return {arm: {row[0]: float(row[1 + i]) for row in rows} for i, arm in enumerate(arms)}
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {error}; write it again with eval.compare") from error
