"""Rows of a data set, each with the place it came from: from a file, or from the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from eval.accuracy.errors import EvalError


@dataclass(frozen=True)
class Row:
    where: str  #: for whoever has to mend it: the file and its line
    values: dict[str, Any]

    def one_of(self, *names: str) -> Any:
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        raise self.error(f"it has no {' or '.join(names)}; its fields are {', '.join(self.values) or 'none'}")

    def text(self, *names: str) -> str:
        value = self.one_of(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{' or '.join(names)} must be a text that is not empty, got {_short(value)}")
        return value

    def id(self, default: str) -> str:
        value = self.values.get("id", default)
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise self.error(f"id must be a text or a number, got {_short(value)}")
        return str(value)

    def error(self, why: str) -> EvalError:
        return EvalError(f"{self.where}: {why}; see eval/README.md for the fields of each task")


def of_file(path: Path) -> list[Row]:
    """Of a file of JSON lines, or of one JSON list. Raises EvalError, naming the line."""
    try:
        with path.open(encoding="utf-8") as file:
            start = file.read(64).lstrip()[:1]
            file.seek(0)
            rows = list(_list(path, file) if start == "[" else _lines(path, file))
    except (OSError, UnicodeDecodeError) as error:
        raise EvalError(f"--data {path} cannot be read: {error}") from error
    if not rows:
        raise EvalError(f"--data {path} has no rows; it must hold JSON objects, one a line, or a list of them")
    return rows


def of_hub(repository: str, configuration: str | None, split: str) -> list[Row]:
    """Raises EvalError where the hub cannot be reached, or has no such data set."""
    import datasets

    try:
        loaded = datasets.load_dataset(repository, configuration, split=split)
        return [Row(f"{repository}, row {number}", dict(row)) for number, row in enumerate(loaded)]
    except Exception as error:  # of many libraries
        raise _no_hub(repository, error) from error


def of_hub_files(repository: str, names: Sequence[str]) -> list[Row]:
    """Of files of JSON lines in a data set of the hub."""
    import huggingface_hub

    found: list[Row] = []
    for name in names:
        try:
            path = huggingface_hub.hf_hub_download(repository, name, repo_type="dataset")
        except Exception as error:  # of many libraries
            raise _no_hub(repository, error) from error
        found += of_file(Path(path))
    return found


def sha_of(rows: Sequence[Row]) -> str:
    """Of all values, however they are laid out in the file."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.values, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def _no_hub(repository: str, error: Exception) -> EvalError:
    lines = str(error).strip().splitlines()
    why = f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    return EvalError(f"{repository} cannot be had from the hub ({why}); give --data FILE, or try again online")


def _lines(path: Path, file: TextIO) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield _row(where, json.loads(line))
            except (ValueError, RecursionError) as error:
                raise EvalError(f"{where}: this is no JSON ({error}); each line must be one JSON object") from error


def _list(path: Path, file: TextIO) -> Iterator[Row]:
    try:
        values = json.load(file)
    except (ValueError, RecursionError) as error:
        raise EvalError(f"{path}: this is no JSON ({error}); it must be a list of objects, or one a line") from error
    for number, value in enumerate(values, 1):
        yield _row(f"{path}, entry {number}", value)


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise EvalError(f"{where}: must be a JSON object, got {_short(value)}")
    return Row(where, value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
