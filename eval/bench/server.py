"""A server in a process group of its own: started, waited for, asked, ended by its pid."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.bench.errors import BenchError, ServerDied

LOG_LINES = 15
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Server:
    url: str
    process: subprocess.Popen
    log: Path
    start_s: float = 0.0  #: from the process' start to its first healthy answer

    def call(self, path: str, method: str = "GET", timeout: float = 60) -> tuple[int, Any]:
        """Status and decoded JSON (or text). Raises ServerDied where nothing answers."""
        request = urllib.request.Request(self.url + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode(errors="replace")
        except OSError as error:
            raise ServerDied(f"{self.url}{path} does not answer: {error}") from error
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def info(self) -> dict[str, Any]:
        """/server_info."""
        status, answer = self.call("/server_info")
        if status != 200 or not isinstance(answer, dict):
            raise BenchError(f"{self.url}/server_info answered {status}: {str(answer)[:200]}")
        return answer

    def flush(self, timeout: float = 60) -> None:
        """Empty the prefix cache, once the server is idle. Raises ServerDied when it never is."""
        status, answer = self.call(f"/flush_cache?timeout={timeout:g}", "POST", timeout + 30)
        if status != 200:
            raise ServerDied(f"the server was not idle {timeout:g} s after its last request: {str(answer).strip()}")

    @property
    def exit_code(self) -> int | None:
        return self.process.poll()

    def last_lines(self) -> str:
        return last_lines(self.log)


def last_lines(log: Path, count: int = LOG_LINES) -> str:
    """Of a log that may not exist yet; blank lines left out."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "(no log)"
    return "\n".join(lines[-count:])


@contextlib.contextmanager
def running(
    module: str, flags: Sequence[str], log: Path, env: dict[str, str], start_seconds: float = 600
) -> Iterator[Server]:
    """`python -m MODULE FLAGS` on a free port. Raises BenchError with the log's last lines if it does not start."""
    port = free_port()
    command = [sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(port), *flags]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        # A session of its own: Ctrl-C in the terminal must end the benchmark first, and the group can be ended at once.
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=ROOT, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        began = time.monotonic()
        _wait(server, start_seconds, " ".join(command[1:]))
        server.start_s = time.monotonic() - began
        yield server
    finally:
        stop(process)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on. Raises BenchError if all that were tried are taken.

    A server binds its port half a minute after it was chosen. From 32768 up Linux hands out ports by itself, and from
    22000 to 29999 SGLang chooses those of its other processes.
    """
    for port in random.SystemRandom().sample(range(30001, 32768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BenchError("none of 100 ports tried between 30001 and 32767 is free on 127.0.0.1: end what holds them")


def stop(process: subprocess.Popen) -> None:
    """End the process and all of its group at once: a server told politely drains its requests first."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)


def _wait(server: Server, start_seconds: float, command: str) -> None:
    deadline = time.monotonic() + start_seconds
    while time.monotonic() < deadline:
        if server.exit_code is not None:
            raise BenchError(
                f"the server did not start: `{command}` exited with {server.exit_code}; "
                f"the last lines of {server.log}:\n{server.last_lines()}"
            )
        with contextlib.suppress(ServerDied):
            if server.call("/health", timeout=5)[0] == 200:
                return
        time.sleep(0.5)
    raise BenchError(
        f"the server did not start: `{command}` gave no answer in {start_seconds:g} s (--start-seconds); "
        f"the last lines of {server.log}:\n{server.last_lines()}"
    )
