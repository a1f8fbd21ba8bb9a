"""Writes trace lines on a thread of its own, so that the scheduler's thread neither waits nor fails.

The scheduler's thread takes a reference to the kept sets, or on a GPU starts a copy that nobody there waits for. The
writer's thread waits for the copies, packs and writes. It may lag: beyond PENDING_BYTES kept sets are left
out, and the file says so. It may fail, on a full disk: then tracing stops, the log says so once, and serving goes on.
"""

import base64
import json
import logging
import os
import queue
import tempfile
import threading
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang_rpc.errors import ConfigError

logger = logging.getLogger(__name__)

#: Kept sets that may wait for the writer; on a GPU this is pinned host memory.
PENDING_BYTES = 2**27
#: Token ids that may wait for it, eight bytes each.
PENDING_IDS = 2**24
#: Lines that may wait for it.
PENDING_LINES = 2**14


def check_folder(folder: str) -> None:
    """Make it if it is not there. Raises ConfigError if no file can be written in it."""
    try:
        path = Path(folder).expanduser()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # users' texts will stand there
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b" ")
    except (OSError, RuntimeError) as error:  # RuntimeError: of a `~` whose home is not known
        sentence = f"--rpc-trace must name a folder that can be written in, got {folder!r} ({error})"
        raise ConfigError(sentence, "config.trace") from error


def pack(kept: np.ndarray, candidates: int) -> str:
    """`kept` of a trace line, of ascending int [sets, keep]: which of `candidates` each set keeps."""
    bits = np.zeros((len(kept), candidates), dtype=bool)
    np.put_along_axis(bits, kept, True, axis=1)
    return base64.b64encode(zlib.compress(np.packbits(bits, axis=1, bitorder="little").tobytes())).decode()


class HostCopy:
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
        """The tensor, once it is on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.numpy()


@dataclass(frozen=True)
class Kept:
    """One compression's part of what an observer was shown."""

    copy: HostCopy  #: [layers, B, heads, most_kept]
    index: int  #: which of the B
    candidates: int
    keep: int
    size: int  #: bytes reserved for it

    def pack(self) -> str:
        """The kept sets as a trace line holds them; waits for their copy."""
        own = self.copy.wait()[:, self.index, :, : self.keep]
        return pack(own.reshape(own.shape[0] * own.shape[1], self.keep), self.candidates)


@dataclass(frozen=True)
class Line:
    """One line of a file, and the kept sets that complete it."""

    path: Path
    fields: dict[str, Any]
    kept: Kept | None = None
    begins: bool = False  #: the file

    @property
    def ids(self) -> int:
        """How many token ids it holds."""
        return sum(len(field) for field in self.fields.values() if isinstance(field, array))

    def write(self) -> None:
        """Append it to its file."""
        fields = {name: list(v) if isinstance(v, array) else v for name, v in self.fields.items()}
        if fields["kind"] == "compression":
            fields = {**fields, "kept": None if self.kept is None else self.kept.pack()}
        with open(self.path, "xb" if self.begins else "ab", opener=_private) as file:
            file.write(json.dumps(fields).encode() + b"\n")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Writer:
    """A thread that writes lines in the order they come. After the first failure it writes no more."""

    def __init__(self, device: torch.device) -> None:
        """`device`: of the kept sets, whose events the thread waits for."""
        self.stopped = False
        self._device = device
        self._lines: queue.Queue[Line] = queue.Queue(PENDING_LINES)
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
            logger.warning("RPC: writing --rpc-trace cannot keep up; kept sets are left out of the files, which say so")
        return fits

    def put(self, line: Line) -> None:
        """Queue a line, or stop tracing if too much waits."""
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
        """Write no more, and say why in the log, once."""
        with self._lock:
            already, self.stopped = self.stopped, True
        if not already:
            logger.error("RPC: --rpc-trace stops, and serving goes on: %s", why)

    def flush(self) -> None:
        """Wait until every queued line is written."""
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
