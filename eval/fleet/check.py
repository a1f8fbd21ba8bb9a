"""The simulation beside measured runs: step times fitted to a calibration, and errors of what they predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.bench.workloads import RPC, Workload
from eval.fleet import report
from eval.fleet.fleet import round_robin, simulate
from eval.fleet.load import Job, Load
from eval.fleet.server import Server, Step
from sglang_rpc.policy.budget import Budget

REPLICAS = 2
ARMS = ("stock", "rpc")
#: What is compared; all of it is also measured by eval.bench.
QUANTITIES = (
    *("requests_s", "tok_s", "ttft_p50_s", "ttft_p99_s", "latency_p50_s", "latency_p99_s", "itl_p50_s"),
    *("running_mean", "running_peak", "kv_mean", "kv_peak", "retractions"),
)


@dataclass(frozen=True)
class Offered:
    """One load of the check."""

    name: str
    load: Load

    def jobs(self, pool: int, seed: int) -> list[Job]:
        """As they are sent: arrivals are those of the benchmark's own Poisson process."""
        drawn = self.load.draw(seed)
        if self.load.rate is None:
            return drawn
        times = self.workload(pool).arrivals(seed)
        return [replace(job, arrives=at) for job, at in zip(drawn, times, strict=True)]

    def workload(self, pool: int) -> Workload:
        """For the benchmark's client, which takes each job's own length from its body."""
        load = self.load
        return Workload(load.clients or 1, 1, load.prompt, load.longest, pool, load.jobs, load.rate)


def loads(jobs: int, clients: int, rate: float) -> list[Offered]:
    """A closed loop, a Poisson process, and the closed loop again with lengths that the servers do not know."""
    drawn = Load(jobs, 32, 640, 0.5, 1536, clients=clients)
    return [
        Offered("closed", drawn),
        Offered("poisson", replace(drawn, clients=None, rate=rate)),
        Offered("unknown", replace(drawn, limit=1)),  # each job's limit is its length
    ]


def fit(batches: Sequence[int], step_s: Sequence[float], prefill_s: float) -> Step:
    """The line through the seconds of a decode step at each number of running requests."""
    request, fixed = np.polyfit(batches, step_s, 1)
    return Step(fixed=float(fixed), request=float(request), prefill=prefill_s)


def server(pool: int, step: Step, rpc: RPC | None) -> Server:
    """A measured server as it is simulated. What compressing takes is in its calibrated step."""
    if rpc is None:
        return Server(pool, step)
    budget = Budget(rpc.interval, rpc.window, int(rpc.interval / rpc.ratio))
    return Server(pool, step, budget, rpc.ratio, forecast=True)


def simulated(one: Server, offered: Offered, seed: int) -> dict[str, Any]:
    """What the simulation says of one run."""
    outcome = simulate(one, REPLICAS, round_robin, offered.jobs(one.pool, seed), offered.load.clients)
    peak = sum(replica.peak_running for replica in outcome.replicas)
    return {**report.measures(outcome, one.pool), "running_peak": peak}


def compared(key: Mapping[str, Any], measured: Mapping[str, Any], said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per quantity. The error is that of the simulation, over what was measured; none where that is 0."""
    rows = []
    for name in QUANTITIES:
        true, claimed = float(measured[name]), float(said[name])
        error = (claimed - true) / true if true else None
        rows.append({**key, "quantity": name, "measured": true, "simulated": claimed, "error": error})
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Two tables of means over the seeds, a line per load and quantity: both arms, and RPC's number over SGLang's."""
    cells: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    others: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        pair = (float(row["measured"]), float(row["simulated"]))
        cells.setdefault((row["load"], row["quantity"]), {}).setdefault(row["arm"], []).append(pair)
        others.setdefault(row["load"], {}).setdefault(row["arm"], []).append(float(row["others"]))
    means = {key: [_means(by_arm[arm]) for arm in ARMS] for key, by_arm in cells.items()}
    lines = ["| load | quantity | SGLang measured | simulated | error | RPC measured | simulated | error |"]
    lines.append("|" + "---|" * 8)
    for (load, quantity), arms in means.items():
        lines.append(f"| {load} | `{quantity}` | {' | '.join(_compared(*arm) for arm in arms)} |")
    for load, used in others.items():
        first, second = (f"{sum(used[arm]) / len(used[arm]):.2f} |  |" for arm in ARMS)
        lines.append(f"| {load} | cores used by other processes | {first}  | {second}  |")
    lines += ["", "| load | quantity | RPC over SGLang, measured | simulated | error |", "|" + "---|" * 5]
    for (load, quantity), (stock, rpc) in means.items():
        if all((*stock, *rpc)):
            measured, simulated = (mine / base for mine, base in zip(rpc, stock, strict=True))
            lines.append(f"| {load} | `{quantity}` | {_compared(measured, simulated)} |")
    return "\n".join(lines) + "\n"


def _means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    measured, simulated = (sum(values) / len(values) for values in zip(*pairs, strict=True))
    return measured, simulated


def _compared(measured: float, simulated: float) -> str:
    error = f"{(simulated - measured) / measured:+.0%}" if measured else ""
    return f"{measured:.4g} | {simulated:.4g} | {error}"
