"""Sockets, processes, system calls and signals: each is tried, from inside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.unit.sandbox.programs import LIBC, refused, run


@pytest.mark.parametrize(
    "family", ["AF_INET, SOCK_STREAM", "AF_INET, SOCK_DGRAM", "AF_INET6, SOCK_STREAM", "AF_UNIX, SOCK_STREAM"]
)
def test_no_socket_of_any_kind(family):
    refused(f"from socket import *; socket({family})")


def test_nothing_listens_hears_or_answers_on_this_machine(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        refused(f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)")
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()
    refused("import socket; socket.socketpair()")
    refused("import urllib.request; urllib.request.urlopen('http://127.0.0.1:1', timeout=5)\n")


@pytest.mark.parametrize(
    "how",
    [
        "import os; os.fork()",
        "import os\nwhile True: os.fork()",
        "import os; os.forkpty()",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import subprocess; subprocess.Popen(['/bin/sleep', '60'])",
        "import os; os.execv('/bin/sh', ['sh'])",
        "import os; os.setsid()",
    ],
)
def test_no_process_is_made_so_none_outlives_it(how):
    refused(how)


#: Numbers of x86_64, and arguments that the kernel itself would take (the parent is this process).
CALLS = {
    "fork": (57,),
    "vfork": (58,),
    "clone": (56, signal.SIGCHLD, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "socket": (41, 2, 1, 0),
    "io_uring_setup": (425, 8, 0),
    "ptrace": (101, 16, "parent", 0, 0),
    "pidfd_open": (434, "parent", 0),
    "prlimit64": (302, "parent", 7, 0, 0),
    "unshare": (272, 0x10000000),
    "mount": (165, 0, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "keyctl": (250, 0, 0, 0, 0),
    "memfd_create": (319, b"x", 0),
    "openat2": (437, 0, 0, 0),
    "shmget": (29, 0, 4096, 0o1666),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are of x86_64")
@pytest.mark.parametrize("name", CALLS)
def test_raw_system_calls_are_no_way_around(name):
    arguments = ", ".join("os.getppid()" if each == "parent" else repr(each) for each in map(_plain, CALLS[name]))
    outcome = run(LIBC + f"print(libc.syscall({arguments}), os.strerror(ctypes.get_errno()))")
    denied = "Function not implemented" if name == "clone3" else "Operation not permitted"
    assert outcome.good, outcome
    assert outcome.stdout == f"-1 {denied}\n", outcome


def _plain(argument):
    return int(argument) if isinstance(argument, int) else argument


def test_no_signal_to_anyone_else():
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            for target in (other.pid, 0, -1, -other.pid, "os.getppid()"):
                refused(f"import os; os.kill({target}, 9)")
            assert other.poll() is None
        finally:
            other.kill()


def test_no_signal_by_way_of_a_file_that_is_ready():
    refused("import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())")


def test_it_dies_with_the_one_who_asked(tmp_path):
    """Killed outright, the grader has no time to end what it started."""
    started = tmp_path / "pid"
    script = f"""
import subprocess
from eval.accuracy import sandbox

class Noted(subprocess.Popen):
    def __init__(self, *arguments, **others):
        super().__init__(*arguments, **others)
        open({str(started)!r}, "w").write(str(self.pid))

subprocess.Popen = Noted
sandbox.run("import time; time.sleep(60)", limits=sandbox.Limits(seconds=60))
"""
    asks = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    until(lambda: started.exists() and started.read_text())
    pid = int(started.read_text())
    time.sleep(0.3)
    assert Path(f"/proc/{pid}").exists()
    asks.kill()
    asks.wait()
    until(lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def until(true) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
