"""What eval.compare has written, read back: whole, or a sentence that says what is wrong with it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

#: Of a row of `summary.csv`, what its readers take for a number.
NUMBERS = ("ratio", "interval", "window", "accuracy", "error", "accuracy_low", "accuracy_high", "peak_share")


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
    """Raises OSError without the file, ValueError if a row of it is not whole."""
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
    return rows
