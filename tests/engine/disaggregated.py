"""A prefill and a decode server on the loopback, KV sent over TCP, as a router would use them."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from eval.bench.server import free_port
from tests.engine.engines import greedy
from tests.engine.servers import Server, started, wait_for

BOTH = (
    *("--skip-tokenizer-init", "--dtype", "float32", "--device", "cpu", "--context-length", "2048"),
    *("--log-level", "warning", "--disaggregation-transfer-backend", "mooncake_tcp"),
)
PREFILL = ("--disaggregation-mode", "prefill", "--disable-overlap-schedule", "--max-total-tokens", "4096")
DECODE = ("--disaggregation-mode", "decode", "--enable-metrics")


def why_not() -> str:
    """Why these servers cannot run here; "" if they can."""
    try:
        import mooncake.engine  # noqa: F401
    except ImportError as error:
        return f"mooncake, which sends KV, cannot be imported ({error}); .ci/run installs what it needs"
    return ""


@dataclass
class Pair:
    prefill: Server
    decode: Server
    bootstrap_port: int
    rooms: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def body(self, prompt: list[int], sampling: dict[str, Any], **more: Any) -> dict[str, Any]:
        """What both servers are sent of one request."""
        where = {"bootstrap_host": "127.0.0.1", "bootstrap_port": self.bootstrap_port}
        return {"input_ids": prompt, "sampling_params": sampling, **where, "bootstrap_room": next(self.rooms), **more}

    def ask(self, prompt: list[int], tokens: int, **more: Any) -> tuple[int, Any]:
        """Status and answer of the decode server to one greedy request."""
        body = self.body(prompt, greedy(tokens, **more))
        half = threading.Thread(target=lambda: self.prefill.call("/generate", body))
        half.start()
        answer = self.decode.call("/generate", body)
        half.join(60)
        return answer

    def staggered(self, requests: list[tuple[list[int], int]], apart: float = 0.15, **more: Any) -> list[Any]:
        """Answers to `requests`, prompts and lengths, of which each comes a moment after the one before."""
        answers: list[Any] = [None] * len(requests)

        def one(index: int) -> None:
            time.sleep(apart * index)
            status, answers[index] = self.ask(*requests[index], **more)
            assert status == 200, answers[index]

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        return answers

    def rpc(self) -> dict[str, Any]:
        """What the decode server's /server_info says of RPC."""
        _, info = self.decode.call("/server_info")
        return info["internal_states"][0]["rpc"]

    def assert_idle_and_balanced(self) -> None:
        """Neither server has anything left; the decode server's checks of its pool would have ended it."""
        for server in (self.decode, self.prefill):
            until = time.monotonic() + 60
            while server.call("/flush_cache", method="POST")[0] != 200:
                assert time.monotonic() < until, f"{server.log.name}: not idle"
                time.sleep(0.5)
            assert server.alive()
        _, metrics = self.decode.call("/metrics")
        used = [line for line in metrics.splitlines() if line.startswith("sglang:num_used_tokens{")]
        assert used
        assert {float(line.split()[-1]) for line in used} == {0.0}
        assert self.rpc()["query_slots_in_use"] == 0


@contextlib.contextmanager
def pair(folder: Path, model: Path, rpc: dict[str, Any], decode: str = "", prefill: str = "", **env: str):
    """Both servers, with the same RPC flags; the decode server checks its pool before each step."""
    port = free_port()
    flags = ("--model-path", str(model), *BOTH, "--rpc-config", json.dumps(rpc))
    flags += ("--disaggregation-bootstrap-port", str(port))
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(started(folder / f"{name}.log", *flags, *own, module=module, env=env, as_users_do=True))
            for name, own, module in (
                ("prefill", [*PREFILL, *prefill.split()], "sglang_rpc.launch_server"),
                ("decode", [*DECODE, *decode.split()], "tests.engine.checked"),
            )
        ]
        for server in servers:
            wait_for(server)
        yield Pair(*servers, port)


needs_mooncake = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it is there")
