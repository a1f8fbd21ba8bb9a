"""Which arms may be compared: a column's, if they held the same KV entries; and which of them is better than the next.

A column is what all policies were given alike: interval, window, ratio, floor. Rows are those of `summary.csv`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.accuracy.statistics import paired
from eval.compare.arms import FULL

Row = Mapping[str, Any]
#: Share by which numbers of entries may differ and still be called the same.
SAME = 0.01

Column = tuple[int, int, float, int]


def column_of(row: Row) -> Column:
    """Interval, window, ratio and floor."""
    return (int(row["interval"]), int(row["window"]), float(row["ratio"]), int(row.get("min_kept") or 0))


def columns(rows: Sequence[Row]) -> dict[Column, list[Row]]:
    """The policies' rows, column by column, in ascending order."""
    found: dict[Column, list[Row]] = {}
    for row in rows:
        if row["policy"] != FULL:
            found.setdefault(column_of(row), []).append(row)
    return dict(sorted(found.items()))


def leader(column: Sequence[Row]) -> Row:
    """The most accurate; of several, the one that held least, then the first. Of known KV entries, if any has them."""
    known = [row for row in column if number(row, "mean_entries") is not None]
    return max(known or column, key=lambda row: (float(row["accuracy"]), -(number(row, "mean_entries") or 0)))


def ties(column: Sequence[Row], shares: Mapping[str, Mapping[str, float]]) -> set[str]:
    """Arms that are not worse than the column's best by more than the standard error of the paired difference.

    None where nothing was right; none whose KV entries are not known.

    Args:
        shares: of right samples by arm, problem by problem.
    """
    best = leader(column)
    if number(best, "mean_entries") is None or float(best["accuracy"]) == 0:
        return set()
    found = set()
    for row in column:
        difference, error, _ = paired(shares[best["arm"]], shares[row["arm"]])
        if number(row, "mean_entries") is not None and difference <= error:
            found.add(row["arm"])
    return found


def same_entries(one: Row, other: Row) -> bool:
    """Whether both held the same KV entries within 1 %, in the mean and at the peak."""
    for name in ("mean_entries", "peak_entries"):
        a, b = number(one, name), number(other, name)
        if a is None or b is None or abs(a - b) > SAME * max(a, b):
            return False
    return True


def others(column: Sequence[Row]) -> list[Row]:
    """Arms that did not hold what the column's best did."""
    best = leader(column)
    return [row for row in column if row is not best and not same_entries(row, best)]


def entries(row: Row) -> str:
    """KV entries held, mean / peak."""
    mean, peak = number(row, "mean_entries"), number(row, "peak_entries")
    return f"{mean:.0f} / {peak:.0f}" if mean is not None and peak is not None else "not known"


def setting(column: Column) -> str:
    """Ratio, and the floor where there is one."""
    return f"c = {column[2]:g}" + (f", F = {column[3]}" if column[3] else "")


def number(row: Row, name: str) -> float | None:
    """None where a row does not tell."""
    value = row[name]
    return None if value in (None, "") else float(value)
