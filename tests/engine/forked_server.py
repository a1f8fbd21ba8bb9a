"""Forking a server from the fork server that has imported SGLang, and its own processes from the server.

A server that is spawned takes over 30 CPU-seconds to start, most of them for importing SGLang three times. A forked one
runs `python -m MODULE FLAGS` all the same, in a session and with an environment of its own; only `multiprocessing`
forks where SGLang asks it to spawn. So its processes have the hooks that it has itself: not those of a prefill server,
whose scheduler has none. That one is spawned.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.engine import forked

#: Of a process, as the system has it; `forked` names another.
_PARENT = psutil.Process.parent


def possible(env: Mapping[str, str], python: Path | str) -> bool:
    """Whether a server with this environment may be forked: it shall import what the fork server has imported."""
    same = all(env.get(name) == os.environ.get(name) for name in ("PYTHONPATH", *forked.READ_AT_IMPORT))
    return same and str(python) == sys.executable and forked.possible()


class ForkedServer:
    """The part of `subprocess.Popen` that tests of servers use."""

    def __init__(self, module: str, flags: Sequence[str], log: Path, env: Mapping[str, str]):
        import sglang_rpc

        assert sglang_rpc.Engine  # SGLang is made ready for a CPU here, as before any engine
        forked.start_by_fork()
        log.write_bytes(b"")
        main = forked.Forked(_Main(module, tuple(flags), str(log)), env)
        self._process = multiprocessing.Process(target=main)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired if it does not end in time, seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked server", timeout or 0)
        return self._process.exitcode


class _Main:
    """`python -m MODULE FLAGS` in a process that was forked."""

    def __init__(self, module: str, flags: tuple[str, ...], log: str):
        self.module, self.flags, self.log = module, flags, log

    def __call__(self) -> None:
        os.setsid()
        out = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(out, stream)
        # Its own processes are forked from it, and signal it when they fail.
        psutil.Process.parent = _PARENT
        sys.argv = [self.module, *self.flags]
        choose = multiprocessing.set_start_method
        multiprocessing.set_start_method = lambda method, force=False: choose("fork", force)
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)
