"""One start: a server, a warm-up, then each of its workloads; yields the rows."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from eval.bench import client, counters, load, metrics, traffic
from eval.bench.arms import Arm
from eval.bench.errors import BenchError, ServerDied
from eval.bench.machine import server_environment
from eval.bench.plan import Start
from eval.bench.server import Server, running
from eval.bench.shapes import Model
from eval.bench.workloads import Workload

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What every start of a benchmark has in common."""

    out: Path
    model: Model
    device: str
    dtype: str
    threads: int  #: OMP_NUM_THREADS of every server; 0: as PyTorch decides
    server_flags: tuple[str, ...]  #: of every arm
    temperature: float | None  #: None: 0 for n = 1, else 1, as equal samples would share KV after they end
    stream_interval: int  #: tokens a chunk; 0: not streamed
    known_lengths: bool  #: ignore_eos, so that the server can plan; without, it estimates
    warmup_tokens: int
    seed: int
    start_seconds: float
    limit_seconds: float
    conditions: dict[str, Any]  #: of machine.conditions()

    def flags(self, arm: Arm, pool_tokens: int) -> list[str]:
        """The whole command line of an arm's server, but host and port. The arm's own flags come last, and win."""
        weights = ["--load-format", "dummy"] if self.model.dummy else []
        return [
            *("--model-path", self.model.path, "--skip-tokenizer-init", *weights),
            *("--device", self.device, "--dtype", self.dtype, "--max-total-tokens", str(pool_tokens)),
            *("--random-seed", str(self.seed), "--log-level", "info", "--log-level-http", "warning"),
            *self.server_flags,
            *arm.flags,
        ]

    @property
    def kv_bytes_per_token(self) -> int | None:
        given = [*self.server_flags, "", ""]
        kv_dtype = given[given.index("--kv-cache-dtype") + 1] if "--kv-cache-dtype" in given else "auto"
        return self.model.kv_bytes_per_token(self.dtype if kv_dtype == "auto" else kv_dtype)

    def sampling_temperature(self, workload: Workload) -> float:
        if self.temperature is not None:
            return self.temperature
        return 0.0 if workload.n == 1 else 1.0

    def columns(self, arm: Arm, workload: Workload) -> Row:
        """The columns OF_ROW, OF_FILE and SAID, known before anything runs."""
        rpc = arm.rpc
        command = " ".join([arm.module, *self.flags(arm, workload.pool_tokens)]).replace(self.model.path, "MODEL")
        rate = "closed" if workload.rate is None else workload.rate
        return {
            "base": arm.base,
            "server": command,
            "custom_params": "" if arm.custom_params is None else json.dumps(arm.custom_params),
            "rpc_interval": rpc.interval if rpc else "",
            "rpc_window": rpc.window if rpc else "",
            "rpc_ratio": float(rpc.ratio) if rpc else "",
            "rpc_scope": rpc.scope if rpc else "",
            **{name: getattr(workload, name) for name in ("concurrency", "n", "prompt_tokens", "output_tokens")},
            **{name: getattr(workload, name) for name in ("samples", "pool_tokens", "pool_fraction", "offered_tokens")},
            "rate": rate,
            "temperature": self.sampling_temperature(workload),
            "stream_interval": self.stream_interval,
            "known_lengths": self.known_lengths,
            "seed": self.seed,
            **self.conditions,
            "threads": self.threads or "",
            "model": self.model.label,
            "model_sha": self.model.sha,
            "weights": "dummy" if self.model.dummy else "of the model",
            "dtype": self.dtype,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "device": self.device,
        }


def rows_of(start: Start, settings: Settings, progress: Callable[[int], None]) -> Iterator[Row]:
    """Runs it. A row with errors is yielded too.

    Raises:
        ServerDied: the server ended or hung; rows until then, that of the failed run included, were yielded.
        BenchError: the server did not start, or is not what the arm says.
    """
    arm = start.arm
    log = settings.out / "logs" / f"rep{start.repetition}-pool{start.pool_tokens}-{arm.name}.log"
    flags, env = settings.flags(arm, start.pool_tokens), server_environment(settings.threads)
    with running(arm.module, flags, log, env, settings.start_seconds) as server:
        facts = _check_server(server, start)
        _warm_up(server, settings, start)
        for workload in start.workloads:
            server.flush()
            measured, failure = _measure(server, workload, settings, arm, start.repetition, progress)
            yield {
                "arm": arm.name,
                "workload": workload.name,
                "repetition": start.repetition,
                "position": start.position,
                "start_s": server.start_s,
                **facts,
                **settings.columns(arm, workload),
                **measured,
            }
            if failure:
                raise ServerDied(f"{arm.name} on {workload.name}, repetition {start.repetition}: {failure}")


def _check_server(server: Server, start: Start) -> Row:
    """The pool is as large as asked for, and RPC is on where the arm says so and nowhere else. Raises BenchError."""
    info = server.info()
    state = info["internal_states"][0]
    pool = (state.get("memory_usage") or {}).get("token_capacity") or info.get("max_total_num_tokens")
    if pool != start.pool_tokens:
        raise BenchError(
            f"the server of {start.arm.name} has a pool of {pool} tokens instead of {start.pool_tokens}, so arms could "
            "not be compared: ask for a pool that this machine can hold, and a multiple of the page size"
        )
    block = state.get("rpc")
    if (block is None) != (start.arm.rpc is None):
        raise BenchError(
            f"the server of {start.arm.name} runs {'without' if block is None else 'with'} RPC, and the arm is "
            f"{'with' if block is None else 'without'} it: see {server.log}"
        )
    return {"server_pool_tokens": pool, "query_ring_bytes": (block or {}).get("query_ring_bytes")}


def _warm_up(server: Server, settings: Settings, start: Start) -> None:
    """Two requests at once, long enough to be compressed: first calls allocate and compile. Raises BenchError."""
    tokens = min(settings.warmup_tokens, max(workload.output_tokens for workload in start.workloads))
    small = Workload(2, 1, 16, tokens, 2 * (16 + tokens) + 16, 2)
    run = asyncio.run(
        _traffic(server, small, settings, start.arm, repetition=0, readings=[], progress=lambda new: None)
    )
    # A request longer than its pool's share may be cut short here; only answers at all are asked for.
    if not all(sample.finished for sample in run.samples):
        raise BenchError(
            f"the warm-up of {start.arm.name} failed: {run.samples[0].error}; the last lines of {server.log}:\n"
            f"{server.last_lines()}"
        )


def _measure(
    server: Server, workload: Workload, settings: Settings, arm: Arm, repetition: int, progress: Callable[[int], None]
) -> tuple[Row, str | None]:
    """The measured columns, and why the server cannot be used further, if so."""
    date, load_average = datetime.now(UTC).isoformat(timespec="seconds"), os.getloadavg()[0]
    readings: list[load.Reading] = []
    before = counters.read(server)
    cpu, own, all_of_it = _cpu_seconds(server), time.process_time(), _machine_cpu_seconds()
    run = asyncio.run(_traffic(server, workload, settings, arm, repetition, readings, progress))
    all_of_it, own, cpu = _machine_cpu_seconds() - all_of_it, time.process_time() - own, _cpu_seconds(server) - cpu
    failure, added = None, {}
    if server.exit_code is not None:
        failure = f"the server exited with {server.exit_code}; the last lines of {server.log}:\n{server.last_lines()}"
    elif run.timed_out:
        failure = f"not finished within {settings.limit_seconds:g} s (--limit-seconds); see {server.log}"
    else:
        try:
            added = counters.change(before, counters.read(server))
        except BenchError as error:
            failure = f"{error}; the last lines of {server.log}:\n{server.last_lines()}"
    summary = load.summarise(readings, run.began, run.last_sent, run.ended)
    row = metrics.of_run(run, summary, settings.kv_bytes_per_token, closed_loop=workload.rate is None)
    row |= {
        "date": date,
        "load_average": load_average,
        "server_cpu_s": cpu,
        "client_cpu_s": own,
        # A server that died took its own count with it.
        "other_cpu_s": None if failure else max(0.0, all_of_it - own - cpu),
        "counters": json.dumps(added, sort_keys=True),
    }
    return row, failure


async def _traffic(
    server: Server,
    workload: Workload,
    settings: Settings,
    arm: Arm,
    repetition: int,
    readings: list[load.Reading],
    progress: Callable[[int], None],
) -> traffic.Run:
    # Another repetition draws other prompts; the arms of one repetition get the same ones.
    seed = settings.seed + repetition

    def request(group: int) -> dict[str, Any]:
        prompt = workload.prompt(group, settings.model.vocab_size, seed)
        temperature = settings.sampling_temperature(workload)
        return client.body(
            prompt,
            workload.output_tokens,
            workload.n,
            temperature,
            settings.stream_interval,
            arm.custom_params,
            known_length=settings.known_lengths,
        )

    async with client.session(server.url) as http, load.sampled(http, readings):
        return await traffic.run(http, workload, request, seed, settings.limit_seconds, progress)


def _cpu_seconds(server: Server) -> float:
    """Of the server's processes that are alive."""
    total = 0.0
    try:
        parent = psutil.Process(server.process.pid)
        for process in [parent, *parent.children(recursive=True)]:
            times = process.cpu_times()
            total += times.user + times.system
    except psutil.Error:
        pass
    return total


def _machine_cpu_seconds() -> float:
    """All cores, all processes, since the machine started."""
    times = psutil.cpu_times()
    # The time of guests is in user and nice already.
    return sum(times) - sum(getattr(times, name, 0.0) for name in ("idle", "iowait", "guest", "guest_nice"))
