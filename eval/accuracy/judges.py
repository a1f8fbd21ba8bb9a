"""Graders in processes of their own: one that hangs, crashes or eats memory costs its verdict, not the run."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import queue
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from eval.accuracy.errors import EvalError
from eval.accuracy.verdict import Problem, Verdict

Judge = Callable[[Problem, str], Verdict]

MEMORY = 8 << 30  #: bytes of address space
PR_SET_PDEATHSIG = 1


class Judges:
    """Calls `judge` in up to `count` processes, and ends one that takes more than `seconds`."""

    def __init__(self, judge: Judge, count: int, seconds: float):
        self._judge, self._seconds = judge, seconds
        self._every: list[_Process] = []
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count)  # one a process
        self._lock = threading.Lock()  # over what is done when closing
        self._closed = False

    async def __call__(self, problem: Problem, answer: str) -> Verdict:
        """What goes wrong is in the verdict. Raises EvalError if the judge does: the run cannot go on."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, problem, answer)

    def close(self) -> None:
        """Whatever is being judged is given up."""
        with self._lock:
            self._closed = True
            for process in self._every:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._every:
            process.end()

    def _ask(self, problem: Problem, answer: str) -> Verdict:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = self._new()
        try:
            found = process.ask(problem, answer, self._seconds)
        except (OSError, EOFError) as error:
            with self._lock:
                self._every.remove(process)
                process.end()
                if self._closed:
                    raise EvalError("stopped while a sample was judged") from error
            late = isinstance(error, TimeoutError)
            why = f"took more than {self._seconds:g} s" if late else f"ended with {process.exitcode}"
            return Verdict(False, error=f"the grader {why}")
        self._idle.put(process)
        if isinstance(found, EvalError):
            raise found
        return found

    def _new(self) -> _Process:
        with self._lock:
            if self._closed:
                raise EvalError("stopped before a sample was judged")
            self._every.append(_Process(self._judge))
            return self._every[-1]


class _Process:
    def __init__(self, judge: Judge):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(judge, theirs), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    def ask(self, problem: Problem, answer: str, seconds: float) -> Verdict | EvalError:
        """Raises TimeoutError; EOFError or OSError if the process is gone."""
        self._pipe.send((problem, answer))
        if not self._pipe.poll(seconds):
            raise TimeoutError
        found: Verdict | EvalError = self._pipe.recv()
        return found

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(judge: Judge, pipe: Connection) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks for verdicts ends this
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with contextlib.suppress(EOFError, OSError):
        while True:
            problem, answer = pipe.recv()
            found: Verdict | EvalError
            try:
                found = judge(problem, answer)
            except EvalError as error:
                found = error
            except BaseException as error:  # RecursionError, MemoryError, what a library raises
                found = Verdict(False, error=f"{type(error).__name__}: {str(error)[:300]}")
            pipe.send(found)
