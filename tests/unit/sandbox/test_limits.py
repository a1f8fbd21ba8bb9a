"""Limits of a program in the sandbox: time, memory, output, disk, threads."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from eval.accuracy import sandbox
from tests.unit.sandbox.programs import LIBC, refused, run

DEAF = """
import signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    time.sleep(9)
"""


@pytest.mark.parametrize(
    "program", ["while True: pass", DEAF, "import threading; threading.Event().wait()"], ids=["busy", "deaf", "waiting"]
)
def test_time(program):
    began = time.monotonic()
    outcome = run(program, seconds=0.4)
    assert (outcome.ended, outcome.code) == ("seconds", -signal.SIGKILL)
    assert time.monotonic() - began < 15
    assert 0.4 <= outcome.seconds < 5


def test_memory():
    assert "MemoryError" in run("x = bytearray(300 << 20)", memory=256 << 20).stderr
    outcome = run("x = []\nwhile True: x.append(bytearray(10 << 20))", memory=256 << 20)
    assert outcome.ended == "exit"
    assert outcome.code != 0


@pytest.mark.parametrize("where", ["sys.stdout", "sys.stderr"])
def test_output(where):
    outcome = run(f"import sys\nwhile True: {where}.write('x' * 100_000)", files=1 << 20)
    assert not outcome.good
    assert len(outcome.stdout) + len(outcome.stderr) <= (1 << 20) + 10_000
    assert outcome.ended == ("output" if where == "sys.stdout" else "exit")


def test_disk():
    one = run("open('big', 'wb').truncate(1 << 30)", files=1 << 20)
    assert "File too large" in one.stderr
    many = run(
        "import time\nfor n in range(9): open(str(n), 'wb').write(b'x' * 500_000)\ntime.sleep(30)", files=1 << 20
    )
    assert many.ended == "files"


def test_threads():
    outcome = run(
        """
        import threading
        threading.stack_size(64 << 10)
        for _ in range(100_000):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        """
    )
    assert outcome.ended == "threads"


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_FSIZE", "RLIMIT_CPU", "RLIMIT_NOFILE"])
def test_limits_cannot_be_raised(name):
    outcome = run(f"import resource as r; n = r.{name}; print(r.getrlimit(n)); r.setrlimit(n, (1 << 40, 1 << 40))")
    assert outcome.code == 1, outcome
    assert "not allowed to raise maximum limit" in outcome.stderr, outcome


def test_root_is_a_user_like_any_other():
    """Its capabilities would open a file that nobody may read."""
    refused("import os; os.close(os.open('mine', os.O_CREAT, 0)); open('mine')")


def test_runs_do_not_see_each_other():
    result = []
    both = [
        threading.Thread(
            target=lambda n=n: result.append(
                run(f"import os, time; open('mine', 'w').write('{n}'); time.sleep(0.3); print(open('mine').read())")
            )
        )
        for n in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(outcome.stdout for outcome in result) == ["0\n", "1\n"]


@pytest.mark.parametrize(
    "attempt",
    [
        "fd = os.open('a', os.O_CREAT | os.O_RDWR)\n"
        "if libc.fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(1 << 30)) < 0:\n"
        "    raise OSError(ctypes.get_errno(), 'fallocate')",
        "os.open('.', os.O_TMPFILE | os.O_RDWR)",
        "open('a', 'w').close(); os.unlink('a')",
        "open('a', 'w').close(); os.rename('a', 'b')",
    ],
)
def test_no_file_takes_room_that_is_not_counted(attempt):
    refused(LIBC + attempt)


def test_many_small_files_are_too_many():
    program = "for n in range(10**6):\n    open(str(n), 'w').close()\n"
    assert sandbox.run(program).ended == "files"
