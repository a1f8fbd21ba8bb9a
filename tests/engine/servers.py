"""Starting servers, each in a process of its own, and talking to them over HTTP.

Most are forked (forked_server.py). With `as_users_do`, and wherever a fork would not be the same, they are spawned.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.bench.server import free_port
from tests.engine import forked_server, on_cuda, starts
from tests.engine.forked_server import ForkedServer

START_SECONDS = 300


@dataclass
class Server:
    url: str
    process: subprocess.Popen | ForkedServer
    log: Path

    def call(self, path: str, body: Any = None, method: str | None = None, timeout: float = 300) -> tuple[int, Any]:
        """Status and decoded JSON (or text)."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def generate(self, prompt: list[int], tokens: int, **params: Any) -> Any:
        """One greedy /generate of token ids; the parsed response."""
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **params}
        status, result = self.call("/generate", {"input_ids": prompt, "sampling_params": sampling})
        assert status == 200, result
        return result

    def alive(self) -> bool:
        return self.process.poll() is None and self.call("/health")[0] == 200


@contextlib.contextmanager
def server(
    tmp_path: Path,
    *flags: str,
    module: str = "sglang_rpc.launch_server",
    env: dict[str, str] | None = None,
    python: Path | str = sys.executable,
    as_users_do: bool = False,
):
    """`python -m MODULE FLAGS` on a free port, with what `on_cuda` adds; ended by pid on leaving."""
    log = tmp_path / "server.log"
    with started(log, *flags, module=module, env=env, python=python, as_users_do=as_users_do) as running:
        wait_for(running)
        yield running


@contextlib.contextmanager
def started(
    log: Path,
    *flags: str,
    module: str = "sglang_rpc.launch_server",
    env: dict[str, str] | None = None,
    python: Path | str = sys.executable,
    as_users_do: bool = False,
):
    """As `server`, of which nobody has waited that it answers."""
    port = free_port()
    device = on_cuda.device_of(on_cuda.value_of("--device", flags))
    added = on_cuda.flags(flags, device)
    all_flags = ["--host", "127.0.0.1", "--port", str(port), *flags, *added]
    own = on_cuda.environment(device, on_cuda.value_of("--dtype", flags) or "auto")
    environment = own | os.environ | (env or {})
    process: subprocess.Popen | ForkedServer
    if not as_users_do and forked_server.possible(environment, python):
        starts.counts["server, forked"] += 1
        process = ForkedServer(module, all_flags, log, environment)
    else:
        starts.counts["server, spawned"] += 1
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(python), "-m", module, *all_flags],
                stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip
    try:
        yield Server(f"http://127.0.0.1:{port}", process, log)
    finally:
        stop(process)


def run_to_exit(
    *flags: str,
    module: str = "sglang_rpc.launch_server",
    env: dict[str, str] | None = None,
    as_users_do: bool = False,
):
    """A program that ends by itself, as a start that is refused does: (exit code, output)."""
    environment = {**os.environ, **(env or {})}
    if as_users_do or not forked_server.possible(environment, sys.executable):
        starts.counts["program, spawned"] += 1
        command = [sys.executable, "-m", module, *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, env=environment)
        return done.returncode, done.stdout + done.stderr
    starts.counts["program, forked"] += 1
    with tempfile.TemporaryDirectory() as folder:
        process = ForkedServer(module, flags, Path(folder) / "log", environment)
        try:
            process.wait(START_SECONDS)
        finally:
            stop(process)
        return process.returncode, (Path(folder) / "log").read_text(errors="replace")


def stop(process: subprocess.Popen | ForkedServer) -> None:
    """End the server and its children at once: a server told politely drains first."""
    for end in (os.killpg, os.kill):  # it may not have a group yet
        with contextlib.suppress(ProcessLookupError):
            end(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def wait_for(running: Server) -> None:
    """Until the server answers. Raises RuntimeError, with the end of its log, if it ends first or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            raise RuntimeError(f"the server exited with {running.process.returncode}:\n{_tail(running.log)}")
        with contextlib.suppress(OSError):
            if running.call("/health", timeout=5)[0] == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"no answer from the server in {START_SECONDS} s:\n{_tail(running.log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])
