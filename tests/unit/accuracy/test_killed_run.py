"""A run that is killed goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from eval.accuracy import tasks
from eval.accuracy.store import read
from tests.conftest import ROOT


def test_a_run_killed_outright_goes_on_without_repeating_or_losing_a_sample(serving, tmp_path):
    answers = {problem.message: problem.expected for problem in tasks.find("reasoner:near", 12).problems}
    server = serving(lambda message: ("", answers[message], "stop"), seconds=0.1)
    out = tmp_path / "out.jsonl"
    shell = [sys.executable, "-m", "eval.accuracy", "--task", "reasoner:near", "--problems", "12", "--samples", "4"]
    shell += ["--temperature", "1", "--concurrency", "3", "--quiet", "--base-url", server.url, "--out", out]
    first = subprocess.Popen(shell, cwd=ROOT)
    end = time.monotonic() + 100
    while not out.exists() or out.read_text().count("\n") < 10:
        assert first.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(0.5)  # what it had asked for is answered
    _, kept = read(out)
    assert 9 <= len(kept) < 48
    asked_before = len(server.asked)
    with out.open("a") as file:
        file.write('{"problem": "near-0-11", "sam')  # as a kill in the middle of a line leaves it
    again = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again
    assert "12 problems, 48 samples\npass@1[avg-of-4]  1.000" in again.stdout, again
    _, samples = read(out)
    assert samples[: len(kept)] == kept
    assert Counter((s["problem"], s["sample"]) for s in samples) == Counter(
        (f"near-0-{n}", k) for n in range(12) for k in range(4)
    )
    # Asked for twice was only what was under way when it was killed.
    twice = [seed for seed, times in Counter(body["seed"] for body in server.asked).items() if times > 1]
    assert len(twice) == asked_before - len(kept) <= 3
    assert len(server.asked) == 48 + len(twice)


def test_a_grader_dies_with_the_run_that_is_killed(tmp_path):
    script = """
import asyncio, os
from eval.accuracy import mathematics
from eval.accuracy.judges import Judges
from eval.accuracy.verdict import Problem

async def main():
    judges = Judges(mathematics.judge, 1, 600)
    await judges(Problem("p", "", "1"), "1")
    print(judges._every[0]._process.pid, flush=True)
    await judges(Problem("p", "", "1"), "10^{10^{10^{10}}}")

if __name__ == "__main__":
    asyncio.run(main())
"""
    (tmp_path / "asks.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asks = subprocess.Popen([sys.executable, tmp_path / "asks.py"], stdout=subprocess.PIPE, text=True, env=environment)
    with asks.stdout:
        pid = int(asks.stdout.readline())
    time.sleep(0.3)  # it is busy, and would not see that nobody waits
    assert running(pid)
    asks.kill()
    asks.wait()
    end = time.monotonic() + 20
    while running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    left = running(pid)
    if left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def running(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
