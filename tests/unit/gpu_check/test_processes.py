"""launch/gpu_check/processes.py: a command has its time, and nothing that it started outlives it."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from launch.gpu_check import processes

#: Tells a file its pid, then sleeps, deaf to interrupts.
SLEEPER = (
    "import os, signal, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(300)"
)
#: Starts sleepers: in its group; in a session of its own; and there with an empty environment, as an orphan.
PARENT = f"""
import subprocess, sys, time
sleeper = [sys.executable, "-c", {SLEEPER!r}, sys.argv[1]]
subprocess.Popen(sleeper)
subprocess.Popen(sleeper, start_new_session=True)
subprocess.run(["/bin/sh", "-c", '"$@" & exit 0', "sh", *sleeper], env={{}}, start_new_session=True)
while len(open(sys.argv[1], "a+").seek(0) or open(sys.argv[1]).readlines()) < 3:
    time.sleep(0.02)
print("[check] three are running", flush=True)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def run(tmp_path):
    def go(code: str, *arguments: str, limit: float = 30, grace: float = 1) -> processes.Ended:
        command = [sys.executable, "-c", code, *arguments]
        return processes.run(command, dict(os.environ), tmp_path / "log", limit, tmp_path, grace)

    go.log = tmp_path / "log"
    return go


def test_the_status_and_the_output(run):
    ended = run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (ended.code, ended.leftovers) == (3, 0)
    assert sorted(run.log.read_text().split()) == ["err", "out"]


def test_a_signal_is_told_from_a_status(run):
    assert run("import os; os.kill(os.getpid(), 11)").code == -signal.SIGSEGV


def test_what_cannot_be_started_says_so(tmp_path):
    ended = processes.run(["/no/such/program"], {}, tmp_path / "log", 5, tmp_path)
    assert ended.code == processes.NOT_STARTED
    assert "No such file" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "inherited", [signal.default_int_handler, signal.SIG_IGN], ids=["as ever", "in the background"]
)
def test_an_interrupt_comes_before_the_kill(run, request, inherited):
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, inherited)
    began = time.monotonic()
    ended = run("import time\ntry: time.sleep(300)\nexcept KeyboardInterrupt: print('where it was')", limit=1, grace=20)
    assert ended.code is None
    assert "where it was" in run.log.read_text()
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("how", ["hangs", "ends"])
def test_nothing_is_left_of_what_it_started(run, tmp_path, how):
    pids = tmp_path / "pids"
    hang = "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(300)"
    began = time.monotonic()
    ended = run(f"import signal, time\n{PARENT}\n{hang if how == 'hangs' else ''}", str(pids), limit=8)
    assert "three are running" in run.log.read_text()
    assert (ended.code is None) == (how == "hangs")
    assert time.monotonic() - began < 25
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 3
    assert [pid for pid in started if alive(pid)] == []
    assert ended.leftovers == 3


def test_what_ends_a_moment_later_was_not_left(run):
    ended = run("import subprocess; subprocess.Popen(['sleep', '0.3'], start_new_session=True)")
    assert (ended.code, ended.leftovers) == (0, 0)


def test_what_was_there_before_stays(run):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        run("print(1)")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_an_interrupted_run_leaves_nothing_either(run, tmp_path, monkeypatch):
    def interrupted(child, limit, grace):
        while "three are running" not in run.log.read_text():
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_wait", interrupted)
    pids = tmp_path / "pids"
    with pytest.raises(KeyboardInterrupt):
        run(PARENT + "\ntime.sleep(300)", str(pids))
    assert [pid for pid in map(int, pids.read_text().split()) if alive(pid)] == []
