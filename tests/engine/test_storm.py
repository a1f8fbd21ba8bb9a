"""A storm: twenty times what the pool holds, random lengths, priorities, aborts and disconnects, on a real server.

`SGLANG_RPC_STORM_SECONDS` makes it longer; the run of a release is 600. `SGLANG_RPC_STORM_FLAGS` adds flags to the
server's: a release runs it with `--pp-size 2` too.
"""

from __future__ import annotations

import asyncio
import os
import random
import time

import aiohttp
import pytest

from tests.engine.servers import server

SECONDS = float(os.environ.get("SGLANG_RPC_STORM_SECONDS", "20"))
POOL = 1000
P, R = 64, 8
#: Each request holds up to 180, and 6 may run at once: a higher priority preempts a lower one.
CLIENTS = 140
#: Seconds from arrival to the end for the highest priority: a quarter of the clients, some 5 rounds of the pool. Lower
#: ones starve for as long as higher ones keep coming: that is what SGLang's strict priorities mean.
STARVATION = 90.0

FLAGS = (
    *("--skip-tokenizer-init", "--dtype", "float32", "--max-total-tokens", str(POOL), "--context-length", "2048"),
    *("--rpc-interval", str(P), "--rpc-window", str(R), "--rpc-scope", "all", "--enable-metrics"),
    *("--enable-priority-scheduling", "--priority-scheduling-preemption-threshold", "0"),
    *("--chunked-prefill-size", "32", "--enable-mixed-chunk"),
    *("--log-level", "warning", "--max-running-requests", "6"),
    *os.environ.get("SGLANG_RPC_STORM_FLAGS", "").split(),
)


class Storm:
    def __init__(self, url: str):
        self.url = url
        self.rng = random.Random(7)
        self.ends_at = 0.0
        self.finished: list[tuple[float, int]] = []  # when, tokens
        self.slowest = [0.0] * 4  # seconds, by priority
        self.aborted = 0
        self.wrong: list[str] = []
        self.retractions = self.restored = self.early = 0

    async def client(self, session: aiohttp.ClientSession, index: int) -> None:
        number = 0
        while time.monotonic() < self.ends_at:
            await self.request(session, f"storm-{index:04d}-{number:05d}")
            number += 1

    async def request(self, session: aiohttp.ClientSession, rid: str) -> None:
        rng, tokens = self.rng, self.rng.randint(20, 400)
        priority, arrived = rng.randrange(4), time.monotonic()
        body = {
            "rid": rid,
            "input_ids": [50 + i for i in range(rng.choice([4, 24]))] + [rng.randrange(20, 512) for _ in range(8)],
            "sampling_params": {
                "temperature": 0,
                "max_new_tokens": tokens,
                "ignore_eos": rng.random() < 0.5,  # a length that admission knows, or not
                "custom_params": {"rpc": {"enabled": rng.random() < 0.9}},
            },
            "priority": priority,
        }
        how = rng.random()
        limit = rng.uniform(0, 20) if how < 0.2 else None  # a disconnect
        try:
            call = session.post(f"{self.url}/generate", json=body, timeout=aiohttp.ClientTimeout(total=limit))
            if 0.2 <= how < 0.35:
                asyncio.get_running_loop().call_later(
                    rng.uniform(0, 20), lambda: asyncio.ensure_future(self.abort(session, rid))
                )
            async with call as response:
                result = await response.json()
        except (TimeoutError, aiohttp.ClientError):
            self.aborted += 1
            return
        if response.status != 200 or result["meta_info"]["finish_reason"]["type"] == "abort":
            self.aborted += 1
            if not 0.2 <= how < 0.35:
                self.wrong.append(f"{rid}: {response.status} {result}")
            return
        receipt = result["meta_info"]["rpc"]
        self.retractions += receipt["retractions"]
        self.restored += receipt["restored"]
        self.early += receipt["early"]
        if len(result["output_ids"]) != tokens:
            self.wrong.append(f"{rid}: {len(result['output_ids'])} of {tokens} tokens")
        self.finished.append((time.monotonic(), tokens))
        self.slowest[priority] = max(self.slowest[priority], time.monotonic() - arrived)

    async def abort(self, session: aiohttp.ClientSession, rid: str) -> None:
        async with session.post(f"{self.url}/abort_request", json={"rid": rid}):
            pass

    async def run(self, seconds: float) -> None:
        self.ends_at = time.monotonic() + seconds
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self.client(session, index) for index in range(CLIENTS)))


@pytest.fixture(scope="module")
def running(goldens, tmp_path_factory):
    path = goldens / "gqa_all_p64"
    environment = {
        "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
        "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    }
    with server(tmp_path_factory.mktemp("storm"), "--model-path", str(path), *FLAGS, env=environment) as started:
        yield started


def test_a_storm_leaves_nothing_behind(running):
    storm = Storm(running.url)
    begun = time.monotonic()
    asyncio.run(storm.run(SECONDS))
    drained = time.monotonic() - begun
    assert storm.wrong == []
    assert storm.slowest[3] < STARVATION
    assert running.alive()

    # Nothing is left: no request, no slot, no byte on the host.
    deadline = time.monotonic() + 30
    while running.call("/flush_cache", method="POST")[0] != 200:
        assert time.monotonic() < deadline, "the server does not become idle"
        time.sleep(0.5)
    _, info = running.call("/server_info")
    rpc = info["internal_states"][0]["rpc"]
    assert (rpc["host_backup_bytes"], rpc["query_slots_in_use"]) == (0, 0)
    _, metrics = running.call("/metrics")
    used = [line for line in metrics.splitlines() if line.startswith("sglang:num_used_tokens{")]
    assert [float(line.split()[-1]) for line in used] == [0.0] * len(used)

    rates = _rates(storm.finished, begun, SECONDS)
    print(
        f"\n{len(storm.finished)} finished, {storm.aborted} aborted, {storm.early} early compressions, "
        f"{storm.retractions} retractions, {storm.restored} restored; tok/s by fifths {rates}; "
        f"slowest by priority {[round(seconds) for seconds in storm.slowest]} s; "
        f"drained {drained - SECONDS:.0f} s after the last arrival"
    )
    assert len(storm.finished) > 20
    assert storm.aborted > 5
    assert storm.restored > 0 or SECONDS < 300  # a short storm may preempt nobody, or only those left alone


def _rates(finished: list[tuple[float, int]], begun: float, seconds: float) -> list[int]:
    fifth = seconds / 5
    return [
        round(sum(tokens for at, tokens in finished if begun + i * fifth <= at < begun + (i + 1) * fifth) / fifth)
        for i in range(5)
    ]
