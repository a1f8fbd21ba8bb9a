"""A workload's requests, sent as its load says: a closed loop of clients, or arrivals of a Poisson process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from eval.bench import client
from eval.bench.client import Sample
from eval.bench.workloads import Workload


@dataclass
class Run:
    """What was sent and what came back. Times are seconds of time.perf_counter()."""

    began: float
    samples: list[Sample] = field(default_factory=list)
    last_sent: float = 0.0  #: until here the whole offered load was in flight
    ended: float = 0.0
    timed_out: bool = False

    @property
    def wall_s(self) -> float:
        return self.ended - self.began


async def run(
    http: aiohttp.ClientSession,
    workload: Workload,
    request: Callable[[int], dict[str, Any]],
    seed: int,
    limit_s: float,
    progress: Callable[[int], None] | None = None,
) -> Run:
    """All of the workload's groups. `request` makes the body of group i. After `limit_s` the rest is given up."""
    # Bodies are made before the clock starts: the client shares the machine with the server.
    bodies = [request(group) for group in range(workload.groups)]
    result = Run(began=time.perf_counter())
    result.last_sent = result.began

    async def one(group: int) -> None:
        result.last_sent = time.perf_counter()
        result.samples += await client.send(http, bodies[group], progress)

    async def clients() -> None:
        waiting = iter(range(workload.groups))

        async def next_one() -> None:
            for group in waiting:
                await one(group)

        await _together([next_one() for _ in range(workload.concurrency // workload.n)])

    async def arrivals() -> None:
        async def at(seconds: float, group: int) -> None:
            await asyncio.sleep(result.began + seconds - time.perf_counter())
            await one(group)

        await _together([at(seconds, group) for group, seconds in enumerate(workload.arrivals(seed))])

    try:
        async with asyncio.timeout(limit_s):
            await (clients() if workload.rate is None else arrivals())
    except TimeoutError:
        result.timed_out = True
    result.ended = time.perf_counter()
    _add_missing(result, workload, limit_s)
    return result


async def _together(coroutines: list) -> None:
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


def _add_missing(result: Run, workload: Workload, limit_s: float) -> None:
    """Samples that were given up count as errors, or a run that hangs would look like a shorter one."""
    for _ in range(workload.samples - len(result.samples)):
        result.samples.append(
            Sample(result.began, workload.output_tokens, error=f"not finished within {limit_s:g} s (--limit-seconds)")
        )
