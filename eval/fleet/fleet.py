"""A router, its replicas, and the time that passes.

The one loop is a heap of two kinds of events: a job comes, a replica's stretch ends. Arrivals cut stretches short. With
SimPy each replica would be a process that every arrival interrupts and asks how far it got. The heap of the standard
library does it in fewer lines.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.fleet.load import Job
from eval.fleet.replica import Replica
from eval.fleet.request import NEVER, Request
from eval.fleet.server import Server

#: Prefix affinity gives way where its replica has more requests than the least loaded has, times this and plus that.
BALANCE_TIMES, BALANCE_PLUS = 1.5, 4

#: Kinds of events; of one moment, jobs come first.
ARRIVAL, BOUNDARY = 0, 1


@dataclass(frozen=True)
class View:
    """What a router sees of one replica when a job comes."""

    requests: int  #: running and waiting
    entries: int  #: KV entries in use, and those that waiting prompts will take
    cached: bool  #: whether the job's shared prefix is in its cache


#: Which replica a job is sent to; of equal ones the first.
Router = Callable[[Job, Sequence[View]], int]


def round_robin(job: Job, views: Sequence[View]) -> int:
    """Each in turn."""
    return job.number % len(views)


def least_requests(job: Job, views: Sequence[View]) -> int:
    """The one with the fewest requests."""
    return min(range(len(views)), key=lambda i: views[i].requests)


def least_kv(job: Job, views: Sequence[View]) -> int:
    """The one with the fewest KV entries."""
    return min(range(len(views)), key=lambda i: views[i].entries)


def prefix_affinity(job: Job, views: Sequence[View]) -> int:
    """The one with the fewest requests of those that hold the job's prefix, unless it has far more than another."""
    least = least_requests(job, views)
    holding = [i for i, view in enumerate(views) if view.cached]
    if not holding:
        return least
    chosen = min(holding, key=lambda i: views[i].requests)
    far_more = views[chosen].requests > BALANCE_TIMES * views[least].requests + BALANCE_PLUS
    return least if far_more else chosen


ROUTERS: dict[str, Router] = {
    "round-robin": round_robin,
    "least-requests": least_requests,
    "least-kv": least_kv,
    "prefix-affinity": prefix_affinity,
}


@dataclass(frozen=True)
class Outcome:
    """What a simulation gave."""

    requests: list[Request]  #: in the order of their ends
    replicas: list[Replica]  #: as they are at the end
    seconds: float  #: from the start to the last token


def simulate(server: Server, replicas: int, router: Router, jobs: Sequence[Job], clients: int | None = None) -> Outcome:
    """All `jobs`, in the order of their numbers, on as many equal replicas.

    Args:
        clients: of a closed loop, in which a client sends its next job when it has its answer; None: jobs come in their
            own time.

    Raises ValueError if a job does not fit an empty replica, as SGLang would cut it short.
    """
    _check_fit(server, jobs)
    fleet = [Replica(server) for _ in range(replicas)]
    first = len(jobs) if clients is None else clients
    rest = iter(jobs[first:])
    events = [(job.arrives, ARRIVAL, job.number) for job in jobs[:first]]
    while events:
        now, kind, number = heapq.heappop(events)
        if kind == ARRIVAL:
            job = jobs[number]
            number = router(job, _views(fleet, job, now))
            fleet[number].arrive(job, now)
        elif fleet[number].until == now:
            for _ in range(fleet[number].boundary(now)):
                if (job := next(rest, None)) is not None:
                    heapq.heappush(events, (now, ARRIVAL, job.number))
        else:
            continue  # an arrival has ended this stretch earlier
        if fleet[number].until != NEVER:
            heapq.heappush(events, (fleet[number].until, BOUNDARY, number))
    ended = sorted((r for replica in fleet for r in replica.ended), key=lambda r: (r.ended, r.job.number))
    return Outcome(ended, fleet, ended[-1].ended)


def _views(fleet: Sequence[Replica], job: Job, now: float) -> list[View]:
    return [View(r.requests(), r.entries(now), bool(job.shared) and r.cache.holds(job.group)) for r in fleet]


def _check_fit(server: Server, jobs: Sequence[Job]) -> None:
    for job in {(job.prompt, job.output, job.limit): job for job in jobs}.values():
        if (needed := server.least_pool(job)) > server.pool:
            raise ValueError(
                f"a request of {job.prompt} + {job.output} tokens needs {needed} of the pool's {server.pool} KV "
                "entries; give replicas a larger pool, or cut the outputs"
            )
