"""Rows as a data file has them."""

from eval.accuracy.rows import Row


def row(**values) -> Row:
    return Row("f.jsonl, line 3", values)
