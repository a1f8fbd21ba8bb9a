"""Data files: rows that are read, and files that hold none."""

from __future__ import annotations

import json

import pytest

from eval.accuracy import rows
from eval.accuracy.errors import EvalError
from tests.unit.accuracy.runs import written


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: this is no JSON"),
        ('{"a": 1}\n\n[1]\n', "line 3: must be a JSON object, got [1]"),
        ("[1, {}]", "entry 1: must be a JSON object, got 1"),
        ("[{}", "this is no JSON"),
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ("[]", "has no rows"),
        ("3\n", "line 1: must be a JSON object, got 3"),
        ("[" * 100_000, "this is no JSON"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(tmp_path, text, named):
    path = tmp_path / "d"
    path.write_text(text)
    with pytest.raises(EvalError) as caught:
        rows.of_file(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(EvalError, match="cannot be read"):
        rows.of_file(tmp_path / "none")
    with pytest.raises(EvalError, match="cannot be read"):
        rows.of_file(tmp_path)
    (tmp_path / "d").write_bytes(b"\xff\xfe{}")
    with pytest.raises(EvalError, match="cannot be read"):
        rows.of_file(tmp_path / "d")


def test_a_list_and_lines_are_the_same_data(tmp_path):
    values = [{"b": "\u2028", "a": 1}, {"a": 2}]
    (tmp_path / "list").write_text("\n " + json.dumps(values, indent=1))
    lines = rows.of_file(written(tmp_path / "lines", *values))
    listed = rows.of_file(tmp_path / "list")
    assert [row.values for row in lines] == [row.values for row in listed] == values
    assert rows.sha_of(lines) == rows.sha_of(listed) != rows.sha_of(lines[:1])
    assert [row.where for row in lines] == [f"{tmp_path / 'lines'}, line {n}" for n in (1, 2)]
