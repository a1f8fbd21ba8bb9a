"""Which server is started when, and what runs on it.

A start is one (repetition, pool, arm): a server's pool is fixed when it starts. Within a repetition the arms of one
pool follow each other, so that a pair is measured minutes apart; their order rotates from one repetition, and pool, to
the next.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from eval.bench.arms import Arm
from eval.bench.errors import BenchError
from eval.bench.workloads import RPC, Workload

#: (arm, workload, repetition): what identifies a measured row.
Key = tuple[str, str, int]


@dataclass(frozen=True)
class Start:
    repetition: int  #: from 1
    pool_tokens: int
    arm: Arm
    position: int  #: in the order of this pool's arms, from 0
    workloads: tuple[Workload, ...]

    def keys(self) -> list[Key]:
        return [(self.arm.name, workload.name, self.repetition) for workload in self.workloads]


def starts(
    arms: Sequence[Arm], workloads: Sequence[Workload], repetitions: int, done: Collection[Key] = ()
) -> list[Start]:
    """In the order they are carried out, without what is done. Raises BenchError."""
    _check(arms, workloads, repetitions)
    found = []
    pools = sorted({workload.pool_tokens for workload in workloads})
    for repetition in range(1, repetitions + 1):
        for number, pool in enumerate(pools):
            shift = (repetition - 1 + number) % len(arms)
            for position, arm in enumerate([*arms[shift:], *arms[:shift]]):
                wanted = tuple(
                    w for w in workloads if w.pool_tokens == pool and (arm.name, w.name, repetition) not in done
                )
                if wanted:
                    found.append(Start(repetition, pool, arm, position, wanted))
    return found


def describe(planned: Sequence[Start], rpc: RPC, seconds_per_start: float = 35) -> str:
    """What a dry run prints: the workloads with their arithmetic, then the starts."""
    workloads = list({w.name: w for start in planned for w in start.workloads}.values())
    lines = ["workload                                 offered  fraction  samples  stock fits  rpc fits  at most"]
    for w in workloads:
        stock, ours = w.fits(w.output_tokens), w.fits(rpc.peak(w.output_tokens))
        lines.append(
            f"{w.name:<40} {w.offered_tokens:>7}  {w.pool_fraction:>8.3f}  {w.samples:>7}  "
            f"{stock:>10.1f}  {ours:>8.1f}  {ours / stock:>6.2f}x"
        )
    lines.append("")
    lines += [
        f"repetition {s.repetition}, pool {s.pool_tokens}: {s.arm.name:<12} {len(s.workloads)} workload(s)  "
        f"{s.arm.module} {' '.join(s.arm.flags)}".rstrip()
        for s in planned
    ]
    runs = sum(len(start.workloads) for start in planned)
    tokens = sum(w.total_output_tokens for start in planned for w in start.workloads)
    lines.append("")
    lines.append(
        f"{len(planned)} starts (about {len(planned) * seconds_per_start / 60:.0f} minutes on a CPU), {runs} runs, "
        f"{tokens} tokens to generate"
    )
    return "\n".join(lines)


def _check(arms: Sequence[Arm], workloads: Sequence[Workload], repetitions: int) -> None:
    if repetitions < 1:
        raise BenchError(f"--repetitions must be at least 1, got {repetitions}")
    if not arms:
        raise BenchError("there is no arm to measure; name some with --arms or --arm")
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise BenchError(f"the arm {name} is given twice; each arm has a name of its own")
    by_name: dict[str, Workload] = {}
    for workload in workloads:
        if by_name.setdefault(workload.name, workload) != workload:
            raise BenchError(f"{workload.name} is planned twice with different numbers of requests")
