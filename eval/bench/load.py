"""How many requests run, how many wait and how many KV slots are in use, sampled while a workload runs.

/v1/loads reads what the scheduler leaves in shared memory (every 15 decode steps and at each prefill): sampling it asks
nothing of the scheduler, needs no --enable-metrics, and exists in a stock server.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

import aiohttp
import orjson

SECONDS = 0.25


@dataclass(frozen=True)
class Reading:
    at: float  #: time.perf_counter()
    running: int
    waiting: int
    used_tokens: int


@dataclass(frozen=True)
class Load:
    """Means over time and peaks of a run; None where there was no reading."""

    running_mean: float | None
    running_peak: int | None
    running_mean_full: float | None  #: only while the whole load was offered
    waiting_mean: float | None
    used_tokens_mean: float | None
    used_tokens_peak: int | None
    readings: int


def parse(answer: dict, at: float) -> Reading:
    """The sum over data-parallel ranks."""
    loads = answer["loads"]
    return Reading(
        at,
        sum(load["num_running_reqs"] for load in loads),
        sum(load["num_waiting_reqs"] for load in loads),
        sum(load["num_used_tokens"] for load in loads),
    )


def summarise(readings: list[Reading], began: float, full_until: float, ended: float) -> Load:
    """Readings are evenly spaced, so plain means are means over time."""
    seen = [reading for reading in readings if began <= reading.at <= ended]
    full = [reading for reading in seen if reading.at <= full_until]
    return Load(
        running_mean=_mean([reading.running for reading in seen]),
        running_peak=max((reading.running for reading in seen), default=None),
        running_mean_full=_mean([reading.running for reading in full]),
        waiting_mean=_mean([reading.waiting for reading in seen]),
        used_tokens_mean=_mean([reading.used_tokens for reading in seen]),
        used_tokens_peak=max((reading.used_tokens for reading in seen), default=None),
        readings=len(seen),
    )


@contextlib.asynccontextmanager
async def sampled(http: aiohttp.ClientSession, readings: list[Reading], seconds: float = SECONDS):
    """Appends to `readings` until left. A server that does not answer leaves a gap; its requests say why."""

    async def loop() -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
                async with http.get("/v1/loads?include=core", timeout=aiohttp.ClientTimeout(total=10)) as response:
                    readings.append(parse(orjson.loads(await response.read()), time.perf_counter()))
            await asyncio.sleep(seconds)

    task = asyncio.create_task(loop())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None
