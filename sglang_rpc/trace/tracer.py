"""What each compression kept, a file a request: for whoever wants to see what a request has forgotten.

The scheduler's thread takes a reference to the kept sets, or on a GPU starts a copy that nobody there waits for. One
thread waits for the copies, packs and writes. It may fall behind: beyond PENDING_BYTES kept sets are left out, and the
file says so. It may fail, on a full disk: then tracing stops, the log says so once, and serving goes on.

A file is JSON lines, ASCII, read by eval/trace_view/reader.py:

    {"kind": "request", "format": 1, "rid", "layers", "heads", "prompt", "options", and what `server` holds}
    {"kind": "compression", a Compression's numbers, "think", "output", "kept"}     one for each
    {"kind": "end", "finish", "receipt", "think", "output"}                         not if it was aborted as it waited

`heads`: kept sets a layer, 1 or one for each KV head. `output`: token ids since the line before. `think`: positions of
the first thought and of the first token behind the thoughts, null where there is none yet; null as a whole where no
think markers are known. `kept`: base64 of zlib of one bit a candidate, least significant first, each of the layers *
heads sets beginning a byte; null: left out.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import os
import queue
import re
import tempfile
import threading
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang_rpc.errors import ConfigError
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import SegmentTracker, ThinkMarkers
from sglang_rpc.types import Compression

logger = logging.getLogger(__name__)

FORMAT = 1
#: Kept sets that may wait for the writer; on a GPU this is pinned host memory.
PENDING_BYTES = 2**27
#: Token ids that may wait for it, eight bytes each.
PENDING_IDS = 2**24
#: Lines that may wait for it.
PENDING_LINES = 2**14

#: Of a Compression, in its line.
_NUMBERS = ("event", "generated", "begin", "end", "keep", "window", "prompt_length", "late", "early")


def check_folder(folder: str) -> None:
    """Make it if it is not there. Raises ConfigError if no file can be written in it."""
    try:
        path = Path(folder).expanduser()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # users' texts will stand there
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b" ")
    except (OSError, RuntimeError) as error:  # RuntimeError: of a `~` whose home is not known
        raise ConfigError(f"--rpc-trace must name a folder that can be written in, got {folder!r} ({error})") from error


class RequestTrace:
    """One request's file, as far as the scheduler's thread knows it."""

    def __init__(self, writer: _Writer, path: Path, segment: SegmentTracker | None):
        self._writer, self._path, self._segment = writer, path, segment
        self._told = 0  # output ids that are in its lines

    def compressed(self, c: Compression, kept: _Kept | None, output_ids: Sequence[int]) -> None:
        numbers = {name: getattr(c, name) for name in _NUMBERS}
        line = {"kind": "compression", **numbers, **self._news(output_ids, c.generated)}
        self._writer.put(_Line(self._path, line, kept))

    def finish(self, output_ids: Sequence[int], reason: Any, receipt: dict[str, Any]) -> None:
        """The request has ended: the last line."""
        news = self._news(output_ids, len(output_ids))
        self._writer.put(_Line(self._path, {"kind": "end", "finish": reason, "receipt": receipt, **news}))

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
        self._seen: dict[int, _Kept] = {}  # of each row, from `observer` until `compressed`
        self._writer = _Writer(device)

    def observer(self, compressions: Sequence[Compression], kept: torch.Tensor) -> None:
        """A types.Observer."""
        size = kept.numel() * kept.element_size()
        if not self._writer.reserve(size):
            return
        try:
            copy = _HostCopy(kept)
        except RuntimeError as error:
            self._writer.stop(f"no pinned memory for a copy ({error})")
            return
        for index, c in enumerate(compressions):
            self._seen[c.row] = _Kept(copy, index, c.candidates, c.keep, size // len(compressions))

    def compressed(
        self, state: RequestState, c: Compression, rid: Any, prompt: Sequence[int], output_ids: Sequence[int]
    ) -> None:
        """`c`, which `observer` has been shown, is `state`'s; `output_ids` are known up to `c.generated` at least."""
        kept = self._seen.pop(c.row, None)
        if self._writer.stopped:
            return  # and nobody's text is copied for nothing
        if state.trace is None:
            state.trace = self._begin(state, str(rid), prompt)
        state.trace.compressed(c, kept, output_ids)

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
        self._writer.put(_Line(self._folder / name, first, begins=True))
        return RequestTrace(self._writer, self._folder / name, segment)


def pack(kept: np.ndarray, candidates: int) -> str:
    """`kept` of a trace line, of ascending int [sets, keep]: which of `candidates` each set keeps."""
    bits = np.zeros((len(kept), candidates), dtype=bool)
    np.put_along_axis(bits, kept, True, axis=1)
    return base64.b64encode(zlib.compress(np.packbits(bits, axis=1, bitorder="little").tobytes())).decode()


class _HostCopy:
    """A tensor that is, or will be, on the host."""

    def __init__(self, tensor: torch.Tensor):
        """Raises RuntimeError if there is no pinned memory for it."""
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cpu":
            self._tensor = tensor  # nobody writes to it again
        else:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event(blocking=True)
            self._event.record()

    def wait(self) -> np.ndarray:
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.numpy()


@dataclass(frozen=True)
class _Kept:
    """One compression's part of what a observer was shown."""

    copy: _HostCopy  #: [layers, B, heads, most_kept]
    index: int  #: which of the B
    candidates: int
    keep: int
    size: int  #: bytes reserved for it

    def pack(self) -> str:
        own = self.copy.wait()[:, self.index, :, : self.keep]
        return pack(own.reshape(own.shape[0] * own.shape[1], self.keep), self.candidates)


@dataclass(frozen=True)
class _Line:
    path: Path
    fields: dict[str, Any]
    kept: _Kept | None = None
    begins: bool = False  #: the file

    @property
    def ids(self) -> int:
        """How many token ids it holds."""
        return sum(len(field) for field in self.fields.values() if isinstance(field, array))

    def write(self) -> None:
        fields = {name: list(v) if isinstance(v, array) else v for name, v in self.fields.items()}
        if fields["kind"] == "compression":
            fields = {**fields, "kept": None if self.kept is None else self.kept.pack()}
        with open(self.path, "xb" if self.begins else "ab", opener=_private) as file:
            file.write(json.dumps(fields).encode() + b"\n")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _Writer:
    """A thread that writes lines in the order they come. After the first failure it writes no more."""

    def __init__(self, device: torch.device) -> None:
        """`device`: of the kept sets, whose events the thread waits for."""
        self.stopped = False
        self._device = device
        self._lines: queue.Queue[_Line] = queue.Queue(PENDING_LINES)
        self._reserved = 0  # bytes of kept sets
        self._ids = 0  # of lines
        self._lock = threading.Lock()
        self._behind = False
        threading.Thread(target=self._run, name="rpc-trace", daemon=True).start()

    def reserve(self, size: int) -> bool:
        """Whether kept sets of `size` bytes may wait; if so they count until their line has been written."""
        if self.stopped:
            return False
        with self._lock:
            fits = self._reserved + size <= PENDING_BYTES
            self._reserved += size if fits else 0
        if not fits and not self._behind:
            self._behind = True
            logger.warning("RPC: writing --rpc-trace falls behind; kept sets are left out of the files, which say so")
        return fits

    def put(self, line: _Line) -> None:
        if self.stopped:
            return
        with self._lock:
            self._ids += line.ids
            full = self._ids > PENDING_IDS
        if full:
            self.stop(f"more than {PENDING_IDS} token ids wait to be written")
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.stop(f"{PENDING_LINES} lines wait to be written")

    def stop(self, why: object) -> None:
        with self._lock:
            already, self.stopped = self.stopped, True
        if not already:
            logger.error("RPC: --rpc-trace stops, and serving goes on: %s", why)

    def flush(self) -> None:
        self._lines.join()

    def _run(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a thread begins on the first one, which may be another server's
        while True:
            line = self._lines.get()
            try:
                if not self.stopped:
                    line.write()
            except Exception as error:  # whatever it is, it must not keep the server from serving
                self.stop(f"{type(error).__name__}: {error}")
            with self._lock:
                self._ids -= line.ids
                self._reserved -= 0 if line.kept is None else line.kept.size
            self._lines.task_done()
            del line  # the kept sets, while it waits for the next
