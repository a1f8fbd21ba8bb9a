"""Forking an engine's processes from a fork server that has imported SGLang.

SGLang spawns its scheduler and detokenizer, and each imports SGLang again: 16 of the 20 CPU-seconds of a start. That is
right for a server and wasteful for thirty engines in a row. Only tests do this. Engines for which `possible` is false
are spawned as users have them. forked_server.py has the servers.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from typing import Any

#: Imported by the fork server before its first fork.
PRELOADED = "tests.engine.preloaded"
#: Decide at import what a module is, so a process forked after the imports can't obey them.
READ_AT_IMPORT = ("TRITON_INTERPRET",)
#: Set, every engine is spawned, as users have it.
SPAWN = "SGLANG_RPC_TEST_SPAWN"


def possible() -> bool:
    """Whether the next engine's processes may be forked: nothing asks for an import of its own, and no GPU is used.

    CUDA, once looked at, can't be used after a fork.
    """
    from sglang_rpc.startup import cpu

    return not any(os.environ.get(name) for name in (SPAWN, *READ_AT_IMPORT)) and not cpu.accelerator_available()


def start_by_fork() -> None:
    """Make `multiprocessing.Process` fork from the fork server, which is started first if it is not running."""
    multiprocessing.set_start_method("forkserver", force=True)  # SGLang has just forced "spawn"
    if forkserver._forkserver._forkserver_pid is None:
        multiprocessing.set_forkserver_preload([PRELOADED])
    forkserver.ensure_running()
    _spare(forkserver._forkserver._forkserver_pid)


def _spare(server: int) -> None:
    """Let SGLang's shutdown, which kills every descendant, leave the fork server alive; the engine's processes die."""
    from sglang.srt.entrypoints import engine
    from sglang.srt.utils import kill_process_tree

    engine.kill_process_tree = functools.partial(kill_process_tree, skip_pid=server)


def stop() -> None:
    """End the fork server, if there is one, and wait for it."""
    if (server := forkserver._forkserver._forkserver_pid) is not None:
        os.kill(server, signal.SIGKILL)  # asked politely it tears down PyTorch first, for seconds
        forkserver._forkserver._stop()


class Forked:
    """A process's function, which takes an environment along, the test's if none is given: the fork server has its own.

    The environment is set when the child unpickles this, before any code of SGLang or of RPC runs in the child.
    """

    def __init__(self, function: Callable, environment: Mapping[str, str] | None = None):
        self.function, self.environment = function, environment

    def __getstate__(self) -> dict[str, Any]:
        environment = os.environ if self.environment is None else self.environment
        return {"function": self.function, "environment": dict(environment)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if PRELOADED not in sys.modules:
            raise ImportError(f"the fork server could not import {PRELOADED}, and multiprocessing hides why")
        os.environ.clear()
        os.environ.update(state["environment"])
        self.function, self.environment = state["function"], state["environment"]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _read_again()
        _name_the_real_parent()
        return self.function(*args, **kwargs)


def _read_again() -> None:
    """Set what the scheduler's module took from the environment at its import, in the fork server."""
    from sglang.srt.environ import envs
    from sglang.srt.managers import scheduler

    scheduler.TEST_RETRACT = envs.SGLANG_TEST_RETRACT.get()
    scheduler.TEST_RETRACT_INTERVAL = envs.SGLANG_TEST_RETRACT_INTERVAL.get()


def _name_the_real_parent() -> None:
    """SGLang's children signal their parent when they fail: that is the engine's process, not the fork server."""
    import psutil

    parent = psutil.Process(multiprocessing.parent_process().pid)
    psutil.Process.parent = lambda self: parent
