"""Starting servers as a user does, in a process of their own, and talking to them over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.bench.server import free_port
from tests.engine import on_cuda, starts

START_SECONDS = 300


@dataclass
class Server:
    url: str
    process: subprocess.Popen
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
):
    """`python -m MODULE FLAGS` on a free port, with what `on_cuda` adds; ended by pid on leaving."""
    with started(tmp_path / "server.log", *flags, module=module, env=env, python=python) as running:
        wait_for(running)
        yield running


@contextlib.contextmanager
def started(
    log: Path,
    *flags: str,
    module: str = "sglang_rpc.launch_server",
    env: dict[str, str] | None = None,
    python: Path | str = sys.executable,
):
    """As `server`, of which nobody has waited that it answers."""
    port = free_port()
    device = on_cuda.device_of(on_cuda.value_of("--device", flags))
    added = on_cuda.flags(flags, device)
    command = [str(python), "-m", module, "--host", "127.0.0.1", "--port", str(port), *flags, *added]
    own = on_cuda.environment(device, on_cuda.value_of("--dtype", flags) or "auto")
    starts.counts["server"] += 1
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=own | os.environ | (env or {}), start_new_session=True
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process, log)
    finally:
        stop(process)


def run_to_exit(*flags: str, module: str = "sglang_rpc.launch_server", env: dict[str, str] | None = None):
    """A program that ends by itself, as a start that is refused does: (exit code, output)."""
    starts.counts["program"] += 1
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=START_SECONDS, env={**os.environ, **(env or {})}
    )
    return done.returncode, done.stdout + done.stderr


def stop(process: subprocess.Popen) -> None:
    """End the server and its children at once: a server told politely drains first."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
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
