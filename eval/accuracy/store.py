"""Samples on disk: JSON lines, the configuration first, then a row a sample, each written as soon as it is there.

A run that was killed goes on where it was: rows that are there are not sampled again, and a line that the kill cut
short is taken away. Another configuration is refused: its samples belong in another file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from eval.accuracy.errors import EvalError

Key = tuple[str, int]  # problem, sample


class Store:
    """Opens `path`, or begins it with `config`. Raises EvalError if it was begun with another one."""

    def __init__(self, path: Path, config: Mapping[str, Any]):
        self.path = path
        config = json.loads(json.dumps(config))  # as it comes back from a file
        known, self.rows = read(path) if path.exists() else (None, [])
        if known is not None:
            different = [name for name in {*known, *config} if known.get(name) != config.get(name)]
            if different:
                name = sorted(different)[0]
                was, now = known.get(name), config.get(name)
                raise EvalError(
                    f"{path} holds samples of another run: {name} was {was!r} and is {now!r} now; "
                    "choose another --out, or run it as it was"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = _open_whole(path)
        if known is None:
            self._write({"config": config})
        self.done: set[Key] = {(row["problem"], row["sample"]) for row in self.rows}

    def add(self, row: Mapping[str, Any]) -> None:
        """On disk when this returns. Raises ValueError for a sample that is there already."""
        key = (row["problem"], row["sample"])
        if key in self.done:
            raise ValueError(f"sample {key} is in {self.path} already")
        self._write(row)
        self.rows.append(dict(row))
        self.done.add(key)

    def close(self) -> None:
        self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Configuration (None if the file holds none yet) and rows. Raises EvalError if it is no such file."""
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
    if not lines:
        return None, []
    try:
        first, *rows = [json.loads(line) for line in lines]
        return first["config"], rows
    except (ValueError, KeyError, TypeError) as error:
        raise EvalError(
            f"{path} is not a file of samples: {type(error).__name__}: {error}; choose another --out"
        ) from error


def _open_whole(path: Path) -> TextIO:
    """For appending, behind the last whole line."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")
