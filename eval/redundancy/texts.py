"""Texts to measure, from files: samples of eval.accuracy, or plain text; and tokens of them."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.accuracy import store
from eval.accuracy.errors import EvalError

Tokens = Sequence[Hashable]
PARTS = ("generated", "thoughts", "said")


@dataclass(frozen=True)
class Text:
    group: str
    name: str  #: its file, and of a file of samples which one
    tokens: Tokens


@dataclass(frozen=True)
class Tokenizer:
    """How a text becomes tokens; `name` says it."""

    name: str
    encode: Callable[[str], Tokens]

    @property
    def unit(self) -> str:
        return "words" if self is WORDS else "tokens"


#: Without a tokenizer: what stands between blanks.
WORDS = Tokenizer("words", str.split)


def tokenizer(path: str | None) -> Tokenizer:
    """Of a local model's directory, or its `tokenizer.json`; words if there is none. Raises EvalError."""
    if path is None:
        return WORDS
    import tokenizers

    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise EvalError(f"--tokenizer must be a directory that holds a tokenizer.json, or that file, got {path!r}")
    try:
        loaded = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no other
        raise EvalError(f"{file} is no tokenizer that the library tokenizers can read: {error}") from error
    loaded.no_truncation()
    name = f"{file.resolve().parent.name}/tokenizer.json, sha256 {sha256(file)[:12]}"
    # The text alone: no markers of beginning or end.
    return Tokenizer(name, lambda text: loaded.encode(text, add_special_tokens=False).ids)


def files(patterns: Sequence[str]) -> list[Path]:
    """What these paths and patterns name, each once. Raises EvalError for one that names no file."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        named = [Path(pattern)] if Path(pattern).is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        named = [path for path in named if path.is_file()]
        if not named:
            raise EvalError(f"no file is at {pattern!r}; give a file, or a pattern such as 'texts/*.txt'")
        found |= dict.fromkeys(named)
    return list(found)


def read(group: str, path: Path, part: str, tokens: Tokenizer) -> Iterator[Text]:
    """The texts of one file: a sample each, or all of it. Raises EvalError."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EvalError(f"{path} is no text in UTF-8: {error}") from error
    if path.suffix != ".jsonl":
        yield Text(group, str(path), tokens.encode(content))
        return
    if not content.startswith('{"config"'):
        raise EvalError(
            f"{path} is no file of eval.accuracy's samples: its first line is no configuration; "
            "give its texts as plain files"
        )
    for row in store.read(path)[1]:
        name = f"{path}#{row['problem']}/{row['sample']}"
        try:
            yield Text(group, name, tokens.encode(_part(row, part)))
        except (KeyError, TypeError) as error:
            raise EvalError(f"{name} is no sample of eval.accuracy: it lacks {error}; sample it again") from error


def _part(row: dict[str, str], part: str) -> str:
    if part == "generated":
        return f"{row['thoughts']}\n{row['said']}".strip()
    return str(row[part])


def conditions(path: Path) -> dict[str, object]:
    """What a file of samples or a trace says of the model; nothing of a plain text."""
    if path.suffix != ".jsonl":
        return {}
    with path.open(encoding="utf-8") as file:
        first = json.loads(file.readline())
    first = first.get("config", {}) | first
    return {name: first[name] for name in ("task", "model", "temperature", "max_tokens", "model_sha") if name in first}


def sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
