"""Numbers of a simulation, as a row of a table."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.bench.statistics import mean, percentile
from eval.bench.table import as_text
from eval.fleet.fleet import Outcome
from eval.fleet.load import Load
from eval.fleet.server import Server

#: What a simulation leaves out; said with each of its results.
LEFT_OUT = (
    "the time of routers, clients and networks; a router sees what is there at the moment",
    "query slots, of which each request has one that takes no memory, and windows that early compressions wait for",
    "copies to and from host memory, which holds all that RPC retracts",
    "chunked prefill, pages of several entries, and prefixes in the cache that no group shares",
    "a step time that is not linear, and differs with RPC on otherwise than by the entries attended to",
    "aborts, priorities, failures, and replicas that come and go",
    "accuracy",
)


def measures(outcome: Outcome, pool: int) -> dict[str, Any]:
    """The numbers of a fleet's run. Entries are of one replica, and shares of its pool; times are seconds."""
    requests, seconds, fleet = outcome.requests, outcome.seconds, outcome.replicas
    first = [request.first - request.sent for request in requests]
    whole = [request.ended - request.sent for request in requests]
    each = [(r.ended - r.first) / (r.output - 1) for r in requests if r.output > 1]
    entries = [replica.entry_seconds / seconds for replica in fleet]
    return {
        "seconds": seconds,
        "requests_s": len(requests) / seconds,
        "tok_s": sum(request.output for request in requests) / seconds,
        "ttft_p50_s": percentile(first, 50),
        "ttft_p99_s": percentile(first, 99),
        "itl_p50_s": percentile(each, 50),
        "latency_p50_s": percentile(whole, 50),
        "latency_p99_s": percentile(whole, 99),
        "running_mean": sum(replica.running_seconds for replica in fleet) / seconds,
        "kv_mean": sum(entries) / len(fleet),
        "kv_mean_share": sum(entries) / len(fleet) / pool,
        "kv_peak": max(replica.peak for replica in fleet),
        "kv_peak_share": max(replica.peak for replica in fleet) / pool,
        "retractions": sum(request.retractions for request in requests),
        "compressions": sum(replica.compressions + replica.early for replica in fleet),
        "cached_share": mean(request.cached / request.job.prompt for request in requests),
    }


def settings(server: Server, load: Load, seed: int) -> dict[str, Any]:
    """What a row was simulated with, beside its key."""
    offered = {name: value for name, value in asdict(load).items() if name != "output"}
    budget = server.budget
    return {
        **offered,
        "seed": seed,
        "pool": server.pool,
        "max_running": server.max_running,
        "rpc_interval": budget.interval if budget else None,
        "rpc_window": budget.window if budget else None,
        "rpc_ratio": server.ratio if budget else None,
        **{f"{name}_s": value for name, value in asdict(server.step).items()},
    }


def line(row: Mapping[str, Any]) -> str:
    """A row in words."""
    return (
        f"{row['replicas']:>3} x {row['arm']:<3} {row['output_tokens']:g} tokens, {row['router']}: "
        f"{row['requests_s']:.3g} requests/s, {row['tok_s']:.0f} tok/s, first token p99 {row['ttft_p99_s']:.3g} s, "
        f"whole p50 {row['latency_p50_s']:.3g} p99 {row['latency_p99_s']:.3g} s, {row['kv_mean_share']:.0%} of the "
        f"pool used, {row['running_mean']:.1f} at once, {row['retractions']} retractions"
    )


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV of rows that all have the first one's columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(as_text(row) for row in rows)


def left_out() -> str:
    """The sentence that goes with every result."""
    return "Left out: " + "; ".join(LEFT_OUT) + "."
