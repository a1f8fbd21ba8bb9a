"""The command line."""

from __future__ import annotations

import argparse
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.gpu_check.step import Step
from launch.gpu_check.steps import FIRST, GROUPS, chosen

FIRST_SECONDS = 560
#: Seconds kept for the archive, and the most that a step may need beyond its time to end.
RESERVE = 20
PAGE = "docs/gpu_check.md says what each step asks and how to read the answer."


@dataclass(frozen=True)
class Options:
    steps: tuple[Step, ...]
    budget: float  #: seconds for everything
    out: Path
    work: Path
    archive_bytes: int
    interpreter: bool
    backend: str  #: of the steps that name none; "": the fastest
    commit: str
    dry_run: bool
    list: bool

    @property
    def report(self) -> Path:
        """What the archive holds: logs and results."""
        return self.work / "report"


def read(argv: Sequence[str]) -> Options:
    """Raises SystemExit: 2 with one sentence for what is not understood, 0 after --help."""
    made = _parser()
    given = made.parse_args(argv)
    words = [word.strip() for word in given.steps.split(",") if word.strip()] + ["bench"] * given.bench
    try:
        steps = chosen(words)
    except ValueError as error:
        made.exit(2, f"gpu_check: {error}\n")
    if not steps:
        made.exit(2, "gpu_check: --steps names no step; --list prints them\n")
    budget = default_budget(steps) if given.budget is None else given.budget
    if budget <= RESERVE:
        made.exit(2, f"gpu_check: --budget must be above {RESERVE} s, which the archive needs, got {budget:g}\n")
    if not 0 < given.archive_mib <= 1024:
        made.exit(2, f"gpu_check: --archive-mib must be above 0 and at most 1024, got {given.archive_mib:g}\n")
    out = given.out or Path(tempfile.gettempdir(), time.strftime("sglang-rpc-gpu-check-%Y%m%d-%H%M%S"))
    return Options(
        steps=steps,
        budget=budget,
        out=out.resolve(),
        work=(given.work or out / "work").resolve(),
        archive_bytes=int(given.archive_mib * 2**20),
        interpreter=given.interpreter,
        backend=given.backend or "",
        commit=given.commit or "",
        dry_run=given.dry_run,
        list=given.list,
    )


def default_budget(steps: Sequence[Step]) -> float:
    """Under ten minutes for the first group, whose boxes sum up to more; of any other step its box."""
    first = sum(step.box for step in steps if step in FIRST)
    others = sum(step.box for step in steps if step not in FIRST)
    return min(first + RESERVE, FIRST_SECONDS) + others if first else others + RESERVE


def listing() -> str:
    """The groups and steps, with what each asks."""
    lines = []
    for group, steps in GROUPS.items():
        lines += [f"{group}:", *(f"  {step.name:<17} {step.box:>4} s  {step.asks}" for step in steps)]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="bash launch/gpu_check.sh",
        description="Does sglang-rpc work on this host's GPU? Ten minutes, a summary, and an archive of logs.",
        epilog=textwrap.fill(
            f"Exit status: 0 if every step went well, or asks about something that this host does not have; 1 if one "
            f"failed or was not run; 2 for a wrong command; 130 after Ctrl-C. PYTHON names the interpreter, "
            f"SGLANG_RPC_GOLDENS the folder of recordings. {PAGE}",
            100,
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--steps", default="first", metavar="A,B", help="steps or groups, in this order (default: first; see --list)"
    )
    made.add_argument("--bench", action="store_true", help="also the serving pairs: stock SGLang against RPC")
    made.add_argument(
        "--budget", type=float, metavar="SECONDS",
        help=f"for everything (default: {FIRST_SECONDS} for the first group, of other steps the sum of their boxes)",
    )  # fmt: skip
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="for summary.txt and logs.tgz (default: a new folder under /tmp)"
    )
    made.add_argument("--work", type=Path, metavar="DIR", help="for everything else (default: work under --out)")
    made.add_argument("--archive-mib", type=float, default=15, metavar="M", help="logs.tgz at most (default: 15)")
    made.add_argument("--backend", choices=("fa3", "flashinfer", "triton"), help="of stock, tight and ample")
    made.add_argument("--commit", metavar="ID", help="what the summary says where there is no git")
    made.add_argument(
        "--interpreter", action="store_true", help="without a GPU: what can run in Triton's interpreter, on the CPU"
    )
    made.add_argument("--dry-run", action="store_true", help="print each step's command, box and question; run nothing")
    made.add_argument("--list", action="store_true", help="print the steps and what they ask")
    return made
