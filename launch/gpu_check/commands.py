"""A step's command line on this host: the words in braces filled in."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.gpu_check.host import Host
from launch.gpu_check.options import RESERVE, Options
from launch.gpu_check.step import Step


@dataclass(frozen=True)
class Command:
    words: tuple[str, ...]
    environment: Mapping[str, str]  #: added to that of the run

    def __str__(self) -> str:
        """As one would type it."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join("python" if word == sys.executable else word for word in self.words)])


def command_of(step: Step, name: str, limit: float, options: Options, host: Host, backend: str) -> Command:
    """`name`: what the step is called in this run; `limit`: seconds that it has; `backend`: of what names none."""
    words = {
        "python": sys.executable,
        "name": name,
        "work": str(options.work),
        "results": str(options.report / "results"),
        "backend": backend,
        "processes": str(host.processes),
        # A test that hangs shows where before its step is ended.
        "timeout": f"{max(5, limit - RESERVE):.0f}",
        "compute-sanitizer": host.sanitizer or "compute-sanitizer",
    }
    interpreted = options.interpreter and step.interpreted
    environment = {key: _fill(value, words) for key, value in step.environment}
    if interpreted:
        environment = {"TRITON_INTERPRET": "1", **environment}
    return Command(tuple(_fill(word, words) for word in interpreted or step.command), environment)


def _fill(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace("{" + word + "}", value)
    return text


def plan(steps: Sequence[Step], options: Options) -> str:
    """What would run on a host that has everything."""
    lines = [f"budget {options.budget:.0f} s; {options.out}: summary.txt, logs.tgz", ""]
    host = Host()
    for step in steps:
        lines.append(f"{step.name}: {step.asks}")
        if options.interpreter and not step.interpreted:
            lines.append("    left out: needs a CUDA device")
            continue
        lines.append(f"    box {step.box} s, not begun with fewer than {step.least} s left")
        backend = options.backend or host.fastest_backend
        lines.append(f"    {command_of(step, step.name, step.box, options, host, backend)}")
    return "\n".join(lines)
