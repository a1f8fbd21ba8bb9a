"""What the rows of one measurement say, a line per form, temperature and length."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from eval.retokenized.forms import Row

NAMES = tuple(field.name for field in fields(Row))
#: A first difference among the last so many tokens is one of the end: where the text was cut, or other text begins.
END = 2
COLUMNS = (
    *("source", "temperature", "form", "tokens", "texts", "other", "share", "error", "inside"),
    *("first", "first_from_end", "lost"),
)
#: Forms whose texts have lengths of their own.
ANY_LENGTH = ("stop", "cut", "cut_inside", "cut_more")


def summary(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Lines in the order of their first rows."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        tokens = "any" if row.form in ANY_LENGTH else str(row.tokens)
        groups.setdefault((row.source, row.temperature, row.form, tokens), []).append(row)
    order = ("text", "more", "chat", *ANY_LENGTH)
    keys = sorted(groups, key=lambda key: (key[0], key[1], order.index(key[2]), int(key[3]) if key[3] != "any" else 0))
    return [_line(key, groups[key]) for key in keys]


def _line(key: tuple[str, str, str, str], rows: Sequence[Row]) -> dict[str, Any]:
    other = [row for row in rows if row.same < row.tokens]
    share = len(other) / len(rows)
    return {
        **dict(zip(COLUMNS[:4], key, strict=True)),
        "texts": len(rows),
        "other": len(other),
        "share": round(share, 4),
        "error": round(math.sqrt(share * (1 - share) / len(rows)), 4),
        "inside": round(sum(row.same < row.tokens - END for row in other) / len(rows), 4),
        "first": statistics.median(row.same for row in other) if other else "",
        "first_from_end": statistics.median(row.tokens - row.same for row in other) if other else "",
        "lost": round(statistics.fmean((row.tokens - row.same) / row.tokens for row in rows), 4),
    }


def markdown(lines: Iterable[Mapping[str, Any]]) -> str:
    """The lines as a table."""
    head = (
        "| of | temperature | form | tokens | texts | other ids | not only at the end | first other token "
        "| from the end | tokens from there on |\n|---|---|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(
        "| {source} | {temperature} | {form} | {tokens} | {texts} | {share:.1%} ± {error:.1%} | {inside:.1%} "
        "| {first} | {first_from_end} | {lost:.1%} |\n".format(**line)
        for line in lines
    )


def write_rows(rows: Iterable[Row], path: Path) -> None:
    _write((asdict(row) for row in rows), NAMES, path)


def write(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    _write(lines, COLUMNS, path)


def read_rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(**{**line, "tokens": int(line["tokens"]), "same": int(line["same"])}) for line in csv.DictReader(file)
        ]


def _write(lines: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
