"""`python -m eval.fleet.measured --out DIR`: two servers behind sglang-router, and what is simulated of them.

Needs `pip install --no-deps sglang-router==0.3.2`. Each arm is calibrated first: the step time with 1, 2, 4 and 8
requests on each server, all at once. The simulation then gets these times, and nothing else of the runs it is compared
with.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from eval.bench import client, load, metrics, options, shapes, traffic
from eval.bench.arms import Arm
from eval.bench.errors import BenchError
from eval.bench.machine import server_environment
from eval.bench.options import Options
from eval.bench.server import Server, free_port, running
from eval.bench.statistics import mean, median
from eval.bench.workloads import Workload
from eval.fleet import check, report
from eval.fleet.server import Step

BATCHES = (1, 2, 4, 8)  #: requests on each server while its step is timed
ROUNDS = 4
CALIBRATION_TOKENS = 224
STREAM_INTERVAL = 16
ROUTER_SECONDS = 120.0


@dataclass(frozen=True)
class Fleet:
    """Servers of one arm, and the router before them."""

    router: Server
    servers: list[Server]


@contextlib.contextmanager
def fleet(asked: Options, arm: Arm, pool: int) -> Iterator[Fleet]:
    """Started, healthy, and ended. Raises BenchError."""
    env, logs = server_environment(asked.settings.threads), asked.out / "logs"
    flags = asked.settings.flags(arm, pool)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(running(arm.module, flags, logs / f"{arm.name}-{number}.log", env))
            for number in range(check.REPLICAS)
        ]
        urls = [server.url for server in servers]
        own = ["--worker-urls", *urls, "--policy", "round_robin", "--log-level", "warn"]
        own += ["--prometheus-port", str(free_port())]
        router = stack.enter_context(
            running("sglang_router.launch_router", own, logs / f"{arm.name}-router.log", env, ROUTER_SECONDS)
        )
        _wait_for_workers(router)
        yield Fleet(router, servers)


def _wait_for_workers(router: Server) -> None:
    """The router answers before it knows its servers. Raises BenchError if it never knows all."""
    deadline, answer = time.monotonic() + ROUTER_SECONDS, None
    while time.monotonic() < deadline:
        _, answer = router.call("/readiness")
        if isinstance(answer, dict) and answer.get("healthy_workers") == check.REPLICAS:
            return
        time.sleep(0.2)
    raise BenchError(f"the router does not have {check.REPLICAS} healthy servers: {answer}; see {router.log}")


async def offer(fleet: Fleet, workload: Workload, bodies: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Send it through the router; what the client saw, and both servers' load."""
    readings: list[list[load.Reading]] = [[] for _ in fleet.servers]
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(client.session(fleet.router.url))
        for server, seen in zip(fleet.servers, readings, strict=True):
            own = await stack.enter_async_context(client.session(server.url))
            await stack.enter_async_context(load.sampled(own, seen))
        ours, all_of_it = _cpu_seconds()
        run = await traffic.run(http, workload, bodies.__getitem__, seed, limit_s=600)
        others = [after - before for before, after in zip((ours, all_of_it), _cpu_seconds(), strict=True)]
    loads = [load.summarise(seen, run.began, run.last_sent, run.ended) for seen in readings]
    row = metrics.of_run(run, loads[0], None, closed_loop=workload.rate is None)
    if row["errors"]:
        raise BenchError(f"{row['errors']} of {workload.samples} requests failed: {row['first_error']}")
    first = [sample.first - sample.sent for sample in run.samples if sample.first is not None]
    steps = [(s.chunks[-1][0] - s.chunks[0][0]) / (s.tokens - s.chunks[0][1]) for s in run.samples if s.chunks]
    return {
        **row,
        "requests_s": row["completed"] / run.wall_s,
        "step_s": mean(steps),
        "first_s": median(first),
        "itl_p50_s": median(steps),
        "running_mean": sum(each.running_mean or 0 for each in loads),
        "running_peak": sum(each.running_peak or 0 for each in loads),
        "kv_mean": mean(each.used_tokens_mean or 0 for each in loads),
        "kv_peak": max(each.used_tokens_peak or 0 for each in loads),
        "others": max(0.0, others[1] - others[0]) / run.wall_s,
    }


def _cpu_seconds() -> tuple[float, float]:
    """Of this process and all that it started, and of the whole machine."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    machine = psutil.cpu_times()
    idle = sum(getattr(machine, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
    return sum(each.user + each.system for each in times), sum(machine) - idle


def bodies(asked: Options, workload: Workload, lengths: Sequence[int], seed: int, known: bool) -> list[dict[str, Any]]:
    """Requests of these lengths, each with a prompt of its own."""
    vocabulary = asked.settings.model.vocab_size
    prompts = [workload.prompt(number, vocabulary, seed) for number in range(len(lengths))]
    return [
        client.body(prompt, tokens, 1, 0.0, STREAM_INTERVAL, known_length=known)
        for prompt, tokens in zip(prompts, lengths, strict=True)
    ]


def calibrate(fleet: Fleet, asked: Options, pool: int) -> tuple[Step, list[float]]:
    """The arm's step time, and the seconds at each of BATCHES: medians of ROUNDS, after a first that warms up."""
    seconds: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    first = []
    for number in range(ROUNDS + 1):
        for batch in BATCHES:
            samples = batch * check.REPLICAS
            workload = Workload(samples, 1, 32, CALIBRATION_TOKENS, pool, samples)
            sent = bodies(asked, workload, [CALIBRATION_TOKENS] * samples, number, True)
            seen = asyncio.run(offer(fleet, workload, sent, number))
            if number:
                seconds[batch].append(seen["step_s"])
                first += [seen["first_s"]] if batch == BATCHES[0] else []
    medians = [median(each) or 0.0 for each in seconds.values()]
    return check.fit(BATCHES, medians, median(first) or 0.0), medians


def run(fleet: Fleet, asked: Options, pool: int, offered: check.Offered, seed: int) -> dict[str, Any]:
    """One load through the router, on empty caches; what was measured."""
    for server in fleet.servers:
        server.flush()
    workload, lengths = offered.workload(pool), [job.output for job in offered.jobs(pool, seed)]
    sent = bodies(asked, workload, lengths, seed, offered.load.limit is None)
    return asyncio.run(offer(fleet, workload, sent, seed))


def arm_rows(asked: Options, given: argparse.Namespace, arm: Arm) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the check of one arm, and its calibration."""
    pool, rows = given.pool_tokens, []
    with fleet(asked, arm, pool) as started:
        step, seconds = calibrate(started, asked, pool)
        print(f"{arm.name}: {step}, fitted to {[round(1e3 * s, 2) for s in seconds]} ms", flush=True)
        one = check.server(pool, step, arm.rpc)
        for seed in range(given.repetitions):
            for offered in check.loads(given.jobs, given.clients, given.rate):
                seen, said = run(started, asked, pool, offered, seed), check.simulated(one, offered, seed)
                key = {"load": offered.name, "seed": seed, "arm": arm.name, "others": seen["others"]}
                rows += check.compared(key, seen, said)
                print(
                    f"  {offered.name}: {seen['tok_s']:.0f} tok/s, simulated {said['tok_s']:.0f}; "
                    f"other processes used {seen['others']:.2f} cores",
                    flush=True,
                )
    command = " ".join([arm.module, *asked.settings.flags(arm, pool)])
    return rows, {"server": command, "batches": BATCHES, "step_s": seconds, "step": asdict(step)}


def main(argv: list[str] | None = None) -> int:
    """Writes check.csv, check.md and conditions.json. 1: something could not be measured, and why."""
    made = argparse.ArgumentParser(prog="python -m eval.fleet.measured", allow_abbrev=False)
    made.add_argument("--out", type=Path, required=True, metavar="DIR")
    made.add_argument("--pool-tokens", type=int, default=2600, help="of each server")
    made.add_argument("--jobs", type=int, default=64)
    made.add_argument("--clients", type=int, default=16, help="of the closed loops")
    made.add_argument("--rate", type=float, default=1.5, help="requests/s of the Poisson process")
    made.add_argument("--repetitions", type=int, default=1)
    given = made.parse_args(argv)
    given.out = given.out.resolve()
    own = ["--out", str(given.out), "--preset", "tight", "--arms", "stock,rpc", "--pool-tokens", str(given.pool_tokens)]
    rows: list[dict[str, Any]] = []
    try:
        asked = options.read([*own, f"--server-flags=--stream-interval {STREAM_INTERVAL}"])
        shapes.write(asked.settings.model)
        said: dict[str, Any] = {name: getattr(given, name) for name in ("pool_tokens", "jobs", "clients", "rate")}
        said |= {"machine": asked.settings.conditions, "left_out": report.LEFT_OUT, "arms": {}}
        for arm in asked.arms:
            found, said["arms"][arm.name] = arm_rows(asked, given, arm)
            rows += found
    except BenchError as error:
        print(f"measured: {error}", file=sys.stderr)
        return 1
    report.write(given.out / "check.csv", rows)
    (given.out / "check.md").write_text(check.markdown(rows))
    text = json.dumps(said, indent=1).replace(str(given.out / "model"), "MODEL")
    (given.out / "conditions.json").write_text(text + "\n")
    print(f"{check.markdown(rows)}\n{report.left_out()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
