"""Run a Python program that nobody has read: what a model wrote.

One process a program, confined before its first line (confine.py says to what): it sees no variable of this
environment and no file but Python's and its own folder's, makes no process and no connection, and is killed at the
limits below. Landlock and seccomp need no privileges and work for root and in containers; where a machine lacks them
the program is not run.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from eval.accuracy.errors import EvalError

CONFINE = Path(__file__).with_name("confine.py")
#: For the interpreter to start and to be confined, before the program's own time begins.
START_SECONDS = 60.0
#: Between two looks at what no kernel limit counts: elapsed time, threads, the folder's size.
LOOK_SECONDS = 0.01
#: In its folder.
MOST_FILES = 256


@dataclass(frozen=True)
class Limits:
    seconds: float = 6.0  #: of wall clock, and as much CPU time and a second more
    memory: int = 2 << 30  #: bytes of address space
    files: int = 16 << 20  #: bytes of all files in its folder; also of what it prints
    threads: int = 64


@dataclass(frozen=True)
class Outcome:
    ended: str  #: `exit`, or the limit it was killed at: `seconds`, `threads`, `files`, `output`
    code: int  #: exit status; negative: a signal
    stdout: str
    stderr: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.ended == "exit" and self.code == 0


def run(program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
    """Raises EvalError if the program cannot be confined here: then it has not been run."""
    limits = limits or Limits()
    with (
        tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        folder = os.path.realpath(folder)
        Path(folder, "program.py").write_text(program, encoding="utf-8", errors="surrogatepass")
        given.write(stdin.encode("utf-8", "surrogatepass"))
        given.seek(0)
        ready, told = os.pipe()
        try:
            process = subprocess.Popen(
                _command(folder, told, limits),
                stdin=given,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=_environment(folder),
                pass_fds=[told],
                start_new_session=True,
            )
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(told)
        try:
            confined = _readable(ready, START_SECONDS) and os.read(ready, 1) == b"+"
            began = time.monotonic()
            ended = _watch(process, folder, limits, began) if confined else "start"
        finally:
            os.close(ready)
            process.kill()  # all there is of it: it could make no other
            process.wait()
        seconds = time.monotonic() - began
        full = os.fstat(out.fileno()).st_size >= limits.files
        stdout, stderr = _text(out, limits.files), _text(err, limits.files)
    if not confined:
        why = stderr.strip().splitlines()[-1:] or [f"the process ended with {process.returncode}"]
        raise EvalError(f"code of models cannot be run safely here, so it is not run: {why[0]}; use another machine")
    if ended == "exit" and full:
        ended = "output"
    return Outcome(ended, process.returncode, stdout, stderr, round(seconds, 3))


def _readable(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read within `seconds`. Not by `select`, which knows no descriptor above 1023."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def check() -> None:
    """Raises EvalError where code cannot be run: before anything is sampled for it."""
    outcome = run("print(1 + 1)", limits=Limits(seconds=30))
    if not outcome.good or outcome.stdout != "2\n":
        raise EvalError(f"code of models cannot be run here: a program that prints 2 ended as {outcome}")


def _command(folder: str, told: int, limits: Limits) -> list[str]:
    kernel = {
        "RLIMIT_CPU": math.ceil(limits.seconds) + 1,
        "RLIMIT_AS": limits.memory,
        "RLIMIT_FSIZE": limits.files,
        "RLIMIT_NOFILE": 64,
    }
    flags = ["-I", "-B", "-X", "utf8"]
    return [sys.executable, *flags, str(CONFINE), folder, str(told), str(os.getpid()), json.dumps(kernel)]


def _environment(folder: str) -> dict[str, str]:
    """None of the caller's variables: they hold keys and tokens."""
    one_thread = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder, **one_thread}


def _watch(process: subprocess.Popen[bytes], folder: str, limits: Limits, began: float) -> str:
    """How it ended; it is still there if it has to be killed."""
    while True:
        try:
            process.wait(LOOK_SECONDS)
            return "exit"
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() - began > limits.seconds:
            return "seconds"
        try:
            if len(os.listdir(f"/proc/{process.pid}/task")) > limits.threads:
                return "threads"
            with os.scandir(folder) as found:
                stats = [entry.stat(follow_symlinks=False) for entry in itertools.islice(found, MOST_FILES + 1)]
            # A file may take more than its length, or less.
            taken = sum(max(stat.st_size, 512 * stat.st_blocks) for stat in stats)
            if taken > limits.files or len(stats) > MOST_FILES:
                return "files"
        except OSError:
            continue  # something ended between two calls


def _text(file: IO[bytes], most: int) -> str:
    file.seek(0)
    return file.read(most).decode("utf-8", "replace")
