"""Trace files (`--rpc-trace DIR`), read and checked. The format is described in sglang_rpc/trace/tracer.py.

    trace = read(Path("....jsonl"))
    trace.output, trace.compressions[0].kept      # ids; bool [layers * heads, candidates]

What each layer held, as positions in the text, is `holdings.compose`'s answer.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.accuracy.errors import EvalError

FORMAT = 1
#: More layers times heads than this are no model's.
MOST_SETS = 2**16
#: More sets times tokens than this are not worth a browser's memory, nor this program's.
MOST_MARKS = 2**29
#: More candidates than this are no request's.
MOST_TOKENS = 2**24


@dataclass(frozen=True)
class Compression:
    """Counts are KV entries, positions are those of the request's row, prompt included."""

    event: int
    generated: int  #: tokens generated so far
    begin: int  #: row position of the first candidate
    end: int  #: length of the row
    keep: int  #: candidates that survive
    window: int  #: the newest entries, always kept
    late: bool
    early: bool
    kept: np.ndarray | None  #: bool [layers * heads, candidates]; None: the server left it out

    @property
    def candidates(self) -> int:
        return self.end - self.begin - self.window

    @property
    def evicted(self) -> int:
        """Entries that each set drops."""
        return self.candidates - self.keep


@dataclass(frozen=True)
class Trace:
    """One request. `output` holds the ids known: to the end, or to the last compression where `receipt` is None."""

    header: dict[str, Any]  #: the first line
    layers: int
    heads: int  #: kept sets a layer: 1, or one for each KV head
    prompt: list[int]
    output: list[int]
    compressions: list[Compression]
    think: tuple[int | None, int | None] | None  #: first thought, first token behind them; None: markers unknown
    finish: dict[str, Any] | None  #: why it ended
    receipt: dict[str, Any] | None  #: None: it has no last line
    cut: bool  #: the file ends within a line

    @property
    def sets(self) -> int:
        return self.layers * self.heads


def read(path: Path) -> Trace:
    """Raises EvalError, in one sentence that names the file and the line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvalError(f"{path} cannot be read ({error.strerror}); give a file that --rpc-trace wrote") from error
    lines = content.split(b"\n")
    # What stands behind the last line end is a line that was not written to its end.
    cut = bool(lines.pop()) and bool(lines)
    header = _header(path, lines)
    layers, heads = header["layers"], header["heads"]
    prompt = list(header["prompt"])
    output: list[int] = []
    think: tuple[int | None, int | None] | None = None
    compressions: list[Compression] = []
    end: dict[str, Any] = {}
    for number, line in enumerate(lines[1:], 2):
        field = _fields(path, number, line)
        kind = field("kind", lambda v: v in ("compression", "end"))
        if end:
            raise _wrong(path, number, "stands behind the last line of its request")
        output += field("output", _ids)
        think = _think(field("think", _is_think))
        if kind == "end":
            end = {"finish": field("finish", _is_object), "receipt": field("receipt", _is_receipt)}
        else:
            compressions.append(_compression(path, number, field, layers * heads, len(prompt), len(output)))
    if layers * heads * len(output) > MOST_MARKS:
        raise EvalError(f"{path} names {layers} layers of {heads} sets for {len(output)} tokens, more than any model's")
    return Trace(
        header,
        layers,
        heads,
        prompt,
        output,
        compressions,
        think,
        end.get("finish"),
        end.get("receipt"),
        cut,
    )


#: A line's field by name, checked. Raises EvalError.
Fields = Callable[[str, Callable[[Any], bool]], Any]


def _header(path: Path, lines: list[bytes]) -> dict[str, Any]:
    try:
        header = json.loads(lines[0]) if lines else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("kind") != "request" or "format" not in header:
        raise EvalError(f"{path} is no trace: its first line is not that of a file that --rpc-trace writes")
    if header["format"] != FORMAT:
        raise EvalError(
            f"{path} is a trace of format {str(header['format'])[:40]}, and this reads format {FORMAT}: "
            "use the checkout that wrote it"
        )
    field = _fields(path, 1, lines[0])
    layers = field("layers", lambda v: _is_count(v, 1, MOST_SETS))
    field("heads", lambda v: _is_count(v, 1, MOST_SETS // layers))
    field("prompt", _ids)
    field("rid", lambda v: isinstance(v, str))
    for name in ("options", "config"):
        field(name, _is_object)
    return header


def _fields(path: Path, number: int, line: bytes) -> Fields:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise _wrong(path, number, "is no JSON object")

    def field(name: str, right: Callable[[Any], bool]) -> Any:
        if name not in values or not right(values[name]):
            raise _wrong(path, number, f"has no valid {name!r}")
        return values[name]

    return field


def _compression(path: Path, number: int, field: Fields, sets: int, prompt: int, told: int) -> Compression:
    def count(name: str, low: int = 0, high: int = MOST_TOKENS) -> int:
        return int(field(name, lambda v: _is_count(v, low, high)))

    field("prompt_length", lambda v: v == prompt)
    generated = count("generated", 1, told)
    end = count("end", prompt, prompt + generated)
    begin = count("begin", prompt, end)
    window = count("window", 1, end - begin)
    candidates = end - begin - window
    keep = count("keep", 0, candidates)
    packed = field("kept", lambda v: v is None or isinstance(v, str))
    kept = None if packed is None else unpack(packed, sets, candidates)
    if packed is not None and (kept is None or not (kept.sum(1) == keep).all()):
        raise _wrong(path, number, f"does not keep {keep} of {candidates} candidates in each of {sets} sets")
    flags = [field(name, lambda v: isinstance(v, bool)) for name in ("late", "early")]
    return Compression(count("event"), generated, begin, end, keep, window, *flags, kept)


def unpack(packed: str, sets: int, candidates: int) -> np.ndarray | None:
    """bool [sets, candidates] of a line's `kept`; None if it is not that."""
    row = -(-candidates // 8)
    try:
        stream = zlib.decompressobj()
        bits = stream.decompress(base64.b64decode(packed, validate=True), sets * row + 1)  # never more than is right
    except (binascii.Error, zlib.error, ValueError):
        return None
    if len(bits) != sets * row or not stream.eof:
        return None
    rows = np.frombuffer(bits, np.uint8).reshape(sets, row)
    return np.unpackbits(rows, axis=1, count=candidates, bitorder="little").astype(bool)


def _is_count(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int for v in value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_receipt(value: Any) -> bool:
    counts = ("compressions", "generated", "held", "evicted")
    return isinstance(value, dict) and all(_is_count(value.get(name), 0, MOST_TOKENS) for name in counts)


def _is_think(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(v is None or _is_count(v, 0, MOST_TOKENS) for v in value)


def _think(value: Any) -> tuple[int | None, int | None] | None:
    return None if value is None else (value[0], value[1])


def _wrong(path: Path, number: int, what: str) -> EvalError:
    return EvalError(f"{path}: line {number} {what}, so this is no trace that --rpc-trace wrote, or it was damaged")
