"""Samples on disk: JSON lines, the configuration first, then a row a sample, each written as soon as it is there.

`config` is what must be the same for samples to stand in one file; `said` is under what they began, for the reader.

A run that was killed goes on where it was: rows that are there are not sampled again, and a line that the kill cut
short is taken away. Another configuration is refused: its samples belong in another file.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from eval.accuracy.errors import EvalError

Key = tuple[str, int]  # problem, sample


class Store:
    """Opens `path`, or begins it with `config`. Raises EvalError if it was begun with another one, or is in use."""

    def __init__(self, path: Path, config: Mapping[str, Any], said: Mapping[str, Any] | None = None):
        self.path = path
        config = json.loads(json.dumps(config))  # as it comes back from a file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise EvalError(f"{path} is being written by another run; choose another --out, or end that one") from error
        known, self.rows = read(path)
        if known is not None:
            different = [name for name in {*known, *config} if known.get(name) != config.get(name)]
            if different:
                name = sorted(different)[0]
                was, now = known.get(name), config.get(name)
                raise EvalError(
                    f"{path} holds samples of another run: {name} was {was!r} and is {now!r} now; "
                    "choose another --out, or run it as it was"
                )
        _cut_to_whole_lines(path)
        if known is None:
            self._write({"config": config, "said": said or {}})
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
    try:
        text = path.read_text(encoding="utf-8")
        if "\n" not in text:
            if text and not text.startswith('{"config"'):
                raise ValueError("its first line is no configuration")
            return None, []
        first, *rows = [json.loads(line) for line in text.rpartition("\n")[0].split("\n")]
        keys = [(row["problem"], row["sample"]) for row in rows]
        if len(set(keys)) < len(keys):
            raise ValueError("a sample is in it twice")
        return first["config"], rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(
            f"{path} is not a file of samples: {type(error).__name__}: {error}; choose another --out"
        ) from error


def _cut_to_whole_lines(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
