"""What this host has: asked once, in a process of its own, since PyTorch may be missing or end it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FACTS_SECONDS = 90
#: Processes of kernel tests: each compiles on a core, and holds a CUDA context of about half a GiB.
MOST_PROCESSES, GIB_EACH = 12, 2
#: The attention backends that a benchmark may use, the fastest first.
BACKENDS = ("fa3", "flashinfer", "triton")
SANITIZERS = ("/usr/local/cuda*/bin/compute-sanitizer", "/opt/nvidia/*/*/compute-sanitizer")


@dataclass(frozen=True)
class Host:
    """What steps need to know of a host. The defaults are a host that has everything."""

    cuda: bool = True
    gpu: str = "an NVIDIA GPU"
    gpu_gib: float = 80.0
    #: What `python -m sglang_rpc.doctor` finds usable; None where it could not be asked.
    backends: tuple[str, ...] | None = BACKENDS
    versions: Mapping[str, str] = field(default_factory=dict)  #: of packages and the driver
    missing: frozenset[str] = frozenset()  #: modules that steps import and that are not installed
    notes: tuple[str, ...] = ()  #: what could not be found out, and why
    cores: int = 12
    sanitizer: str | None = "compute-sanitizer"

    @property
    def processes(self) -> int:
        """How many processes of kernel tests fit."""
        room = int(self.gpu_gib / GIB_EACH) if self.cuda else self.cores
        return max(1, min(MOST_PROCESSES, self.cores, room))

    def has_backend(self, name: str) -> bool:
        """Also true where nobody knows: the step then says."""
        return self.backends is None or name in self.backends

    @property
    def fastest_backend(self) -> str:
        return next((name for name in BACKENDS if self.has_backend(name)), "triton") if self.backends else "flashinfer"

    def lines(self) -> Iterator[str]:
        """For the head of the summary."""
        if self.cuda:
            yield f"GPU: {self.gpu}, {self.gpu_gib:.0f} GiB, driver {self.versions.get('driver', 'unknown')}"
        else:
            yield "GPU: PyTorch sees no CUDA device"
        yield "versions: " + ", ".join(f"{name} {value}" for name, value in self.versions.items() if name != "driver")
        if self.backends is not None:
            yield f"attention backends: {', '.join(self.backends) or 'none'}; {self.cores} cores"
        for note in self.notes:
            yield f"note: {note}"


def ask(modules: frozenset[str], environment: Mapping[str, str], log: Path) -> Host:
    """Start `programs/facts.py` and read its answer; what it says besides goes to `log`."""
    command = [sys.executable, "-m", "launch.gpu_check.programs.facts", *sorted(modules)]
    facts: dict = {}
    with log.open("w") as errors:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=dict(environment), stdout=subprocess.PIPE, stderr=errors, text=True,
                timeout=FACTS_SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            facts = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            facts["notes"] = [f"PyTorch did not say within {FACTS_SECONDS} s which devices it sees"]
        except (IndexError, ValueError):
            facts["notes"] = [f"{' '.join(command[1:3])} ended with status {done.returncode}: see {log.name}"]
    driver = _driver()
    versions = {**facts.get("versions", {}), **({"driver": driver} if driver else {})}
    return Host(
        cuda=facts.get("cuda", False),
        gpu=facts.get("gpu", "unknown"),
        gpu_gib=facts.get("gpu_gib", 0.0),
        backends=None if facts.get("backends") is None else tuple(facts["backends"]),
        versions=versions,
        missing=frozenset(facts.get("missing", ())),
        notes=tuple(facts.get("notes", ())),
        cores=len(os.sched_getaffinity(0)),
        sanitizer=_sanitizer(environment),
    )


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return lines[0] if lines else ""


def _sanitizer(environment: Mapping[str, str]) -> str | None:
    if found := shutil.which("compute-sanitizer", path=environment.get("PATH")):
        return found
    home = environment.get("CUDA_HOME")
    places = [*((f"{home}/bin/compute-sanitizer",) if home else ()), *SANITIZERS]
    return next((path for place in places for path in sorted(glob(place)) if os.access(path, os.X_OK)), None)


def commit() -> str:
    """Of this checkout, with `changed` where files differ from it; `unknown` without git."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A copy inside of another repository has the commit of neither.
    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return "unknown"
    return f"{git('rev-parse', '--short=12', 'HEAD')}{', changed' if git('status', '--porcelain') else ''}"


def version() -> str:
    """Of sglang-rpc, read without importing it."""
    found = re.search(r'^__version__ = "(.+)"', (ROOT / "sglang_rpc" / "__init__.py").read_text(), re.MULTILINE)
    return found[1] if found else "unknown"
