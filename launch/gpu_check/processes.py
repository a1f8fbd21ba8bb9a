"""A step's command: started in a process group of its own, ended after its time, nothing of it left running.

What a step started is found in three ways, none of them a name: by its group; by a mark in its environment; and as a
descendant. Groups and marks do not suffice. A benchmark's server has a group of its own, and SGLang's processes rename
themselves, which wipes the environment that /proc shows. So orphans are adopted here (Linux' "child subreaper"), and
whatever descends from a child that was not there before the step is the step's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "SGLANG_RPC_GPU_CHECK"
#: Seconds from the interrupt, in which pytest shows where it is, to the kill.
GRACE = 10
#: Seconds for what a command that has ended leaves to end as well.
PATIENCE = 1
NOT_STARTED = 127
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Ended:
    """How a command ended; `code` is None after a timeout, and minus the signal's number after a signal."""

    code: int | None
    seconds: float
    leftovers: int = 0  #: other processes of it that had to be killed


def run(
    command: Sequence[str], environment: Mapping[str, str], log: Path, limit: float, cwd: Path, grace: float = GRACE
) -> Ended:
    """Run `command` for at most `limit` seconds, and `grace` more to end itself; its output is added to `log`.

    Everything that it started is gone afterwards, also if this is interrupted.
    """
    adopt_orphans()
    before, began = _children(), time.monotonic()
    mark = f"{os.getpid()}-{time.time_ns()}"
    code = None
    with log.open("ab") as out:
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=cwd,
                env={**environment, MARK: mark}, start_new_session=True, preexec_fn=_hear_interrupts,
            )  # fmt: skip
        except OSError as error:
            out.write(f"not started: {error}\n".encode())
            return Ended(NOT_STARTED, 0.0)
        try:
            code = _wait(child, limit, grace)
        finally:
            seconds = time.monotonic() - began
            if code is not None:
                _wait_until_gone(mark, before)
            left = leftovers(mark, before) - {child.pid}
            _signal_group(child.pid, signal.SIGKILL)
            child.wait()
            _end_all(mark, before)
    return Ended(code, seconds, len(left))


def _hear_interrupts() -> None:
    """In the child: a shell starts what it runs in the background deaf to interrupts, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_until_gone(mark: str, before: frozenset[int]) -> None:
    """Helpers of a process that has ended, such as multiprocessing's, end a moment after it."""
    deadline = time.monotonic() + PATIENCE
    while leftovers(mark, before) and time.monotonic() < deadline:
        time.sleep(0.05)


def _wait(child: subprocess.Popen, limit: float, grace: float) -> int | None:
    try:
        return child.wait(limit)
    except subprocess.TimeoutExpired:
        _signal_group(child.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
        return None


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def adopt_orphans() -> bool:
    """Make this process the parent of what its descendants leave behind; whether this system can."""
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def _end_all(mark: str, before: frozenset[int]) -> None:
    """Kill what carries `mark` or descends from a child that is not in `before`.

    Again and again for a second: what is killed may just have started another.
    """
    killed: set[int] = set()
    for _ in range(20):
        found = leftovers(mark, before)
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
        time.sleep(0.05)
        for pid in killed:  # those that were adopted
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def leftovers(mark: str, before: frozenset[int]) -> set[int]:
    """Processes alive that carry `mark`, or descend from a child of this process that is not in `before`."""
    parents, me = _parents(), os.getpid()
    found = {pid for pid in parents if pid != me and _carries(pid, mark)}
    reached = {me}
    while reached:
        reached = {pid for pid, parent in parents.items() if parent in reached and pid not in before}
        found |= reached
    return found


def _children() -> frozenset[int]:
    return frozenset(pid for pid, parent in _parents().items() if parent == os.getpid())


def _parents() -> dict[int, int]:
    """The parent of each process that is alive."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # "pid (name) state parent ...", and a name may hold anything.
                state, parent = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents[int(entry)] = int(parent)
    return parents


def _carries(pid: int, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return False
