"""What each compression kept, a file per request: shows what a request has forgotten.

A file is JSON lines, ASCII, read by eval/trace_view/reader.py:

    {"kind": "request", "format": 1, "rid", "layers", "heads", "prompt", "options", and what `server` holds}
    {"kind": "compression", a Compression's numbers, "think", "output", "kept"}     one for each
    {"kind": "end", "finish", "receipt", "think", "output"}                         not if it was aborted as it waited

`heads`: kept sets per layer, 1 or one per KV head. `output`: token ids since the line before. `think`: positions of
the first thought and of the first token after the thoughts, null where there is none yet; null as a whole where no
think markers are known. `kept`: base64 of zlib of one bit per candidate, least significant first, each of the layers *
heads sets beginning a byte; null: left out.
"""

import itertools
import os
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sglang_rpc.runtime.request_state import RequestState, TraceFile
from sglang_rpc.runtime.segment import SegmentTracker, ThinkMarkers
from sglang_rpc.trace.writer import HostCopy, Kept, Line, Writer
from sglang_rpc.types import Compression

FORMAT = 1

#: Of a Compression, in its line.
_NUMBERS = ("event", "generated", "begin", "end", "keep", "window", "prompt_length", "late", "early")


class RequestTrace:
    """One request's file, as far as the scheduler's thread knows it."""

    def __init__(self, writer: Writer, path: Path, segment: SegmentTracker | None):
        self._writer, self._path, self._segment = writer, path, segment
        self._told = 0  # output ids that are in its lines

    def compressed(self, c: Compression, kept: Kept | None, output_ids: Sequence[int]) -> None:
        """Write the line of one compression."""
        # As if the row held its whole prompt, which is in the first line.
        whole = replace(c, begin=c.begin + c.offset, end=c.end + c.offset)
        numbers = {name: getattr(whole, name) for name in _NUMBERS}
        line = {"kind": "compression", **numbers, **self._news(output_ids, c.generated)}
        self._writer.put(Line(self._path, line, kept))

    def finish(self, output_ids: Sequence[int], reason: Any, receipt: dict[str, Any]) -> None:
        """The request has ended: the last line."""
        news = self._news(output_ids, len(output_ids))
        self._writer.put(Line(self._path, {"kind": "end", "finish": reason, "receipt": receipt, **news}))

    def _news(self, output_ids: Sequence[int], upto: int) -> dict[str, Any]:
        if self._segment is not None:
            self._segment.advance(output_ids, upto)
        told, self._told = self._told, upto
        return {
            "think": None if self._segment is None else [self._segment.start, self._segment.end],
            "output": array("q", output_ids[told:upto]),
        }


class Tracer:
    """Of one server process. Its methods are the scheduler's thread's, and neither wait nor raise."""

    def __init__(self, folder: str, server: Mapping[str, Any], markers: ThinkMarkers | None, device: torch.device):
        """
        Args:
            server: what the first line of every file says beside what is the request's own.
            device: where the KV cache is.
        """
        self._folder = Path(folder).expanduser()
        self._server = dict(server)
        self._markers = markers
        self._numbers = itertools.count(1)
        self._seen: dict[int, Kept] = {}  # of each row, from `observer` until `compressed`
        self._writer = Writer(device)

    def observer(self, compressions: Sequence[Compression], kept: torch.Tensor) -> None:
        """A types.Observer."""
        size = kept.numel() * kept.element_size()
        if not self._writer.reserve(size):
            return
        try:
            copy = HostCopy(kept)
        except RuntimeError as error:
            self._writer.stop(f"no pinned memory for a copy ({error})")
            return
        for index, c in enumerate(compressions):
            self._seen[c.row] = Kept(copy, index, c.candidates, c.keep, size // len(compressions))

    def compressed(
        self, state: RequestState, c: Compression, rid: Any, prompt: Sequence[int], output_ids: Sequence[int]
    ) -> TraceFile | None:
        """Write down `c`, which `observer` has been shown; returns `state`'s file, begun if there was none.

        Args:
            output_ids: known up to `c.generated` at least.
        """
        kept = self._seen.pop(c.row, None)
        if self._writer.stopped:
            return state.hooks.trace  # and nobody's text is copied for nothing
        file = state.hooks.trace or self._begin(state, str(rid), prompt)
        file.compressed(c, kept, output_ids)
        return file

    def flush(self) -> None:
        """Wait until everything is written."""
        self._writer.flush()

    def _begin(self, state: RequestState, rid: str, prompt: Sequence[int]) -> RequestTrace:
        now = datetime.now(UTC)
        # The rid is whatever a user sent; what of it is a plain name helps to find the file.
        readable = re.sub(r"[^A-Za-z0-9_-]+", "_", rid)[:64].strip("_") or "request"
        name = f"{now:%Y%m%d-%H%M%S}-{os.getpid()}-{next(self._numbers)}-{readable}.jsonl"
        segment = state.segment
        if segment is None and self._markers is not None:
            segment = SegmentTracker(self._markers, prompt)  # of scope `all`: for the reader alone
        first = {
            "kind": "request",
            "format": FORMAT,
            "rid": rid,
            "began": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            **self._server,
            "options": asdict(state.options),
            "prompt": array("q", prompt),
        }
        self._writer.put(Line(self._folder / name, first, begins=True))
        return RequestTrace(self._writer, self._folder / name, segment)
