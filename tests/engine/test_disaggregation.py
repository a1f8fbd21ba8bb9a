"""Prefill/decode disaggregation: through two servers, what one RPC server gives, token for token."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import aiohttp
import pytest

from tests.engine.disaggregated import needs_mooncake, pair
from tests.engine.engines import Golden, engine, greedy, six_requests, staggered

pytestmark = needs_mooncake

SECONDS = float(os.environ.get("SGLANG_RPC_STORM_SECONDS", "10"))
#: Flags of the decode server, of the prefill server, and the environment of both. In a pool of 420, six requests of up
#: to 200 entries do not fit.
TIGHT = (
    "--page-size 4 --max-total-tokens 420 --num-reserved-decode-tokens 32",
    "--page-size 4 --chunked-prefill-size 16",
)
SHAPES = {
    "default": ("--max-total-tokens 4096", "", {}),
    "retracted": ("--max-total-tokens 4096", "", {"SGLANG_TEST_RETRACT": "1"}),
    "tight": (*TIGHT, {}),
    "tight and retracted": (*TIGHT, {"SGLANG_TEST_RETRACT": "1"}),
    "no overlap": (f"{TIGHT[0]} --disable-overlap-schedule", TIGHT[1], {"SGLANG_TEST_RETRACT": "1"}),
    "own tree": (f"{TIGHT[0]} --disaggregation-decode-enable-radix-cache", TIGHT[1], {"SGLANG_TEST_RETRACT": "1"}),
    "two ranks": (f"{TIGHT[0]} --tp-size 2", f"{TIGHT[1]} --tp-size 2", {"SGLANG_TEST_RETRACT": "1"}),
}
#: The others repeat the proof.
IN_EVERY_RUN = "tight and retracted"


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module")
def alone(golden) -> list[list[int]]:
    """What one server gives."""
    with engine(golden.path, golden.config) as running:
        return [result["output_ids"] for result in staggered(running, six_requests(golden))]


@pytest.fixture(
    scope="module",
    params=[shape if shape == IN_EVERY_RUN else pytest.param(shape, marks=pytest.mark.long) for shape in SHAPES],
)
def running(request, golden, alone, tmp_path_factory):
    decode, prefill, environment = SHAPES[request.param]
    strict = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1", "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0"}
    # Without memory pressure nothing is compressed early: outputs are those of one server, which has room.
    rule = replace(golden.config, query_slots=32, pressure="off").as_dict()
    folder = tmp_path_factory.mktemp("pair")
    with pair(folder, golden.path, rule, decode, prefill, **strict, **environment) as servers:
        yield SimpleNamespace(shape=request.param, servers=servers, retracted="SGLANG_TEST_RETRACT" in environment)


def test_six_requests_at_once_give_what_one_server_gives(running, golden, alone):
    before = running.servers.rpc()["compressions"]
    results = running.servers.staggered(six_requests(golden))
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert alone[0] == golden.output
    assert [result["output_ids"] for result in results] == alone, receipts
    for receipt, (_, tokens) in zip(receipts, six_requests(golden), strict=True):
        assert receipt["compressions"] == (tokens - 1 - 8) // 64
        assert receipt["late"] == 0
        assert receipt["restored"] == receipt["retractions"]
    retractions = sum(receipt["retractions"] for receipt in receipts)
    assert (retractions > 20) == running.retracted, retractions
    running.servers.assert_idle_and_balanced()
    assert running.servers.rpc()["compressions"] == before + sum(receipt["compressions"] for receipt in receipts)


def test_the_prefill_server_takes_the_flags_says_one_line_and_does_nothing(running):
    log = running.servers.prefill.log.read_text()
    (line,) = [line for line in log.splitlines() if "RPC: " in line]
    assert line.endswith("nothing is compressed on a prefill server; give the decode server the same --rpc-* flags")
    _, info = running.servers.prefill.call("/server_info")
    assert "rpc" not in info["internal_states"][0]


def test_both_servers_refuse_a_malformed_option(running, golden):
    for server in (running.servers.prefill, running.servers.decode):
        body = running.servers.body(golden.prompt, greedy(20, {"ratio": 1}))
        status, answer = server.call("/generate", body)
        assert status == 400, answer
        assert answer["error"]["message"].startswith("custom_params.rpc.ratio must be ")


def test_paused_with_retract_requests_come_back_through_the_prefill_server(running, golden):
    """Their KV is computed anew, uncompressed: one that was never compressed gets what it would have got."""
    servers, results = running.servers, {}

    def ask(name: str, rpc: dict) -> None:
        results[name] = servers.ask(golden.prompt, 150, rpc=rpc)

    before = servers.decode.call("/metrics")[1]
    threads = [
        threading.Thread(target=ask, args=(name, {"enabled": name == "compressed"})) for name in ("compressed", "whole")
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while _compressions(servers) == _compressions_in(before) and time.monotonic() < until:
        time.sleep(0.05)
    assert servers.decode.call("/pause_generation", {"mode": "retract"})[0] == 200
    time.sleep(0.5)
    assert servers.decode.call("/continue_generation", {})[0] == 200
    for thread in threads:
        thread.join(120)
    assert {status for status, _ in results.values()} == {200}, results
    assert results["whole"][1]["output_ids"] == golden.full[:150]
    output, receipt = results["compressed"][1]["output_ids"], results["compressed"][1]["meta_info"]["rpc"]
    assert len(output) == 150
    if receipt["restored"] == receipt["retractions"]:  # SGLang had just retracted it: the pause found its backup
        assert running.retracted
        assert output == golden.output[:150]
    else:
        assert receipt["restored"] == receipt["retractions"] - 1
        assert receipt["late"] > 0  # those that are due are made up for
    assert receipt["compressions"] >= (150 - 1 - 8) // 64
    servers.assert_idle_and_balanced()


def _compressions_in(metrics: str) -> float:
    name = "sglang:rpc_compressions_total{"
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if line.startswith(name))


def _compressions(servers) -> float:
    return _compressions_in(servers.decode.call("/metrics")[1])


class Storm:
    """More than fits, random lengths, aborts and disconnects, on both servers."""

    def __init__(self, servers, clients: int):
        self.servers, self.clients = servers, clients
        self.rng, self.ends_at = random.Random(7), 0.0
        self.finished = self.ended = 0
        self.wrong: list[str] = []

    async def client(self, session: aiohttp.ClientSession, index: int) -> None:
        number = 0
        while time.monotonic() < self.ends_at:
            await self.request(session, f"storm-{index:04d}-{number:05d}")
            number += 1

    async def request(self, session: aiohttp.ClientSession, rid: str) -> None:
        rng, how = self.rng, self.rng.random()
        tokens, options = rng.randint(2, 300), {"enabled": rng.random() < 0.9}
        prompt = [50 + i for i in range(rng.choice([4, 24]))] + [rng.randrange(20, 512) for _ in range(8)]
        body = self.servers.body(prompt, greedy(tokens, options, ignore_eos=rng.random() < 0.5), rid=rid)
        limit = rng.uniform(0, 10) if how < 0.2 else 600  # a disconnect
        abort = 0.2 <= how < 0.35
        if abort:
            asyncio.get_running_loop().call_later(
                rng.uniform(0, 10), lambda: asyncio.ensure_future(self.abort(session, rid))
            )
        halves = [self.post(session, server, body, limit) for server in (self.servers.prefill, self.servers.decode)]
        _, (status, result) = await asyncio.gather(*halves)
        if status == 200 and result["meta_info"]["finish_reason"]["type"] != "abort":
            self.finished += 1
            if len(result["output_ids"]) != tokens:
                self.wrong.append(f"{rid}: {len(result['output_ids'])} of {tokens} tokens")
            return
        self.ended += 1
        if not abort and limit == 600:
            self.wrong.append(f"{rid}: {status} {result}")

    async def post(self, session, server, body, limit: float):
        try:
            timeout = aiohttp.ClientTimeout(total=limit)
            async with session.post(f"{server.url}/generate", json=body, timeout=timeout) as response:
                return response.status, await response.json()
        except (TimeoutError, aiohttp.ClientError) as error:
            return None, repr(error)

    async def abort(self, session: aiohttp.ClientSession, rid: str) -> None:
        for server in (self.servers.prefill, self.servers.decode):
            async with session.post(f"{server.url}/abort_request", json={"rid": rid}):
                pass

    async def run(self, seconds: float) -> None:
        self.ends_at = time.monotonic() + seconds
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self.client(session, index) for index in range(self.clients)))


def test_a_storm_leaves_nothing_behind(running):
    storm = Storm(running.servers, clients=16)
    asyncio.run(storm.run(SECONDS))
    print(f"\n{storm.finished} finished, {storm.ended} aborted or disconnected, {running.servers.rpc()}")
    assert storm.wrong == []
    assert storm.finished > 5
    assert storm.ended > 1
    running.servers.assert_idle_and_balanced()
