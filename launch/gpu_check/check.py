"""The run: each step in its time box whatever became of those before it, within the budget."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from launch.gpu_check import archive, processes
from launch.gpu_check.commands import command_of
from launch.gpu_check.digest import OURS, digest
from launch.gpu_check.host import ROOT, Host
from launch.gpu_check.options import RESERVE, Options
from launch.gpu_check.processes import Ended
from launch.gpu_check.report import Result, State, Summary
from launch.gpu_check.step import CHECK, PROGRAMS, Step

#: Packages of PyPI by the module that steps import.
INSTALL = {"xdist": "pytest-xdist", "pytest": "pytest pytest-timeout"}
#: What stands for the authors' recordings where they are missing.
SELF_MADE = Step(
    "self-made",
    "makes random models and lets the oracle record them, where the authors' recordings are missing",
    ("{python}", "-m", PROGRAMS + "self_made", "{work}/goldens"),
    box=90,
    least=30,
    headline=CHECK,
)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Of every step, from that of the caller."""
    path = os.pathsep.join([str(ROOT), *filter(None, [given.get("PYTHONPATH")])])
    own = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    # A crash would wait a minute for a core dump of the GPU.
    return {"SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0", **given, **own}


class Check:
    """One run over a host. It writes to the summary, the work folder and the archive."""

    def __init__(
        self,
        options: Options,
        host: Host,
        summary: Summary,
        env: Mapping[str, str],
        *,
        ends_at: float,  # of time.monotonic
        grace: float = processes.GRACE,
    ):
        self.options, self.host, self.summary, self.env = options, host, summary, dict(env)
        self.backend = options.backend or host.fastest_backend
        self.ends_at, self.grace = ends_at, grace
        self.goldens_missing = goldens_in(env) is None
        self.current = ""  #: the step that runs, for who interrupts it

    @property
    def left(self) -> float:
        """Seconds for steps."""
        return self.ends_at - RESERVE - time.monotonic()

    def run(self) -> list[Result]:
        """Every step; the archive is renewed after each, so that a run that is cut off leaves one."""
        results = []
        for step in self.options.steps:
            self.current = step.name
            for result in self._results(step):
                results.append(result)
                self.summary.say(*result.lines())
                self.pack()
        return results

    def pack(self) -> list[str]:
        """Renew the archive, which holds the summary too; returns the files of which a part is missing."""
        shutil.copyfile(self.summary.path, self.options.report / "summary.txt")
        return archive.pack(self.options.report, self.options.out / "logs.tgz", self.options.archive_bytes)

    def _results(self, step: Step) -> Iterator[Result]:
        if (reason := self._reason_against(step)) is not None:
            yield reason
            return
        if step.goldens and self.goldens_missing:
            yield from self._make_goldens()
        yield (result := self._one(step, step.name))
        if step.again_with_triton and result.state in (State.FAILED, State.TIMEOUT) and self.backend != "triton":
            # Later steps too: what failed with it here would fail there.
            self.backend = "triton"
            yield self._one(step, f"{step.name}-triton")

    def _make_goldens(self) -> Iterator[Result]:
        self.goldens_missing = False
        yield self._one(SELF_MADE, SELF_MADE.name)
        self.env["SGLANG_RPC_GOLDENS"] = str(self.options.work / "goldens")

    def _reason_against(self, step: Step) -> Result | None:
        """Why the step is not run here, if it is not; what can be mended counts as NOT RUN."""
        if self.options.interpreter and not step.interpreted:
            return Result(step.name, State.SKIPPED, headline="needs a CUDA device")
        if step.backend and not self.host.has_backend(step.backend):
            return Result(step.name, State.SKIPPED, headline=f"{step.backend} cannot be used here, says the doctor")
        if step.tool and self.host.sanitizer is None:
            return Result(step.name, State.SKIPPED, headline=f"{step.tool} was not found; the CUDA toolkit has it")
        if missing := [name for name in step.modules if name in self.host.missing]:
            packages = " ".join(INSTALL.get(name, name) for name in missing)
            reason = f"{', '.join(missing)} cannot be imported by {sys.executable}: pip install {packages}"
            return Result(step.name, State.NOT_RUN, headline=reason)
        return None

    def _one(self, step: Step, name: str) -> Result:
        if self.left < step.least:
            reason = f"{max(0, self.left):.0f} s left, needs {step.least}; --steps {step.name} runs it alone"
            return Result(name, State.NOT_RUN, headline=reason)
        limit = min(self.left, step.box)
        command = command_of(step, name, limit, self.options, self.host, self.backend)
        log = self.options.report / "logs" / f"{name}.log"
        log.write_text(f"{OURS}$ {command}\n{OURS}at most {limit:.0f} s\n")
        ended = processes.run(command.words, {**self.env, **command.environment}, log, limit, ROOT, self.grace)
        return _result(step, name, ended, limit, log)


def _result(step: Step, name: str, ended: Ended, limit: float, log: Path) -> Result:
    found = digest(log, step, failed=ended.code != 0)
    details = list(found.details)
    if ended.code is None:
        short = f"(the budget left it {limit:.0f} of {step.box} s) " if limit < step.box else ""
        state, what = State.TIMEOUT, short + found.headline
    elif ended.code != 0:
        how = f"signal {-ended.code}" if ended.code < 0 else f"status {ended.code}"
        state, what = State.FAILED, f"({how}) {found.headline}"
    elif not found.proven:
        state, what = State.FAILED, f"(status 0, and its log does not show that it did anything) {found.headline}"
    else:
        state, what = State.OK, found.headline
    if ended.leftovers and state is not State.TIMEOUT:
        details.append(f"{ended.leftovers} processes were left running, and were killed")
    return Result(name, state, ended.seconds, what.strip(), tuple(details))


def goldens_in(env: Mapping[str, str]) -> Path | None:
    """The authors' recordings, where tests/conftest.py looks for them."""
    folder = Path(env.get("SGLANG_RPC_GOLDENS") or ROOT.parent / "shared" / "goldens")
    return folder if (folder / "compress_kv").is_dir() else None
