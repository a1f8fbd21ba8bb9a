"""The sandbox that runs what models write: each thing it must not do is tried, from inside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from eval.accuracy import sandbox
from eval.accuracy.errors import EvalError
from eval.accuracy.sandbox import Limits

ROOT = Path(__file__).resolve().parents[2]
LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def run(program: str, stdin: str = "", **limits) -> sandbox.Outcome:
    return sandbox.run(textwrap.dedent(program), stdin, Limits(**limits))


def refused(program: str) -> None:
    """`program` must be stopped by an error of permission, and by nothing else."""
    outcome = run(program + "\nprint('done')")
    assert outcome.ended == "exit" and outcome.code == 1 and "done" not in outcome.stdout, outcome
    assert "PermissionError" in outcome.stderr, outcome


def test_what_a_solution_needs_works():
    outcome = run(
        """
        import collections, decimal, fractions, heapq, itertools, json, math, random, re, sys, threading
        sys.setrecursionlimit(10**6)
        threading.stack_size(1 << 27)
        def depth(n):
            return n and 1 + depth(n - 1)
        thread = threading.Thread(target=lambda: print(depth(50_000), input()))
        thread.start(); thread.join()
        with open("mine.txt", "w") as file:
            file.write("too")
        print(open("mine.txt").read(), __name__)
        """,
        "é\n",
    )
    assert outcome.good and outcome.stdout == "50000 é\ntoo __main__\n", outcome


def test_what_numpy_needs_works():
    outcome = run("import numpy; print(int(numpy.linalg.det(numpy.eye(300) * 1.0) + 0.5))")
    assert outcome.good and outcome.stdout == "1\n", outcome


def test_a_program_that_fails_says_why():
    outcome = run("import sys; print('partly'); sys.exit(3)")
    assert (outcome.ended, outcome.code, outcome.stdout, outcome.good) == ("exit", 3, "partly\n", False)
    assert "ZeroDivisionError" in run("1 / 0").stderr
    assert "SyntaxError" in run("if").stderr
    assert run("import os; os.abort()").code == -signal.SIGABRT


# ---- files ----


WRITES = {
    "create": "open({folder!r} + '/new', 'w')",
    "overwrite": "open({file!r}, 'w')",
    "append": "open({file!r}, 'a')",
    "truncate by reading": "os.open({file!r}, os.O_RDONLY | os.O_TRUNC)",
    "truncate by path": "os.truncate({file!r}, 0)",
    "remove": "os.remove({file!r})",
    "rename": "os.rename({file!r}, {file!r} + '2')",
    "move in": "os.rename({file!r}, 'stolen')",
    "move out": "open('own', 'w').close(); os.rename('own', {folder!r} + '/own')",
    "link": "os.link({file!r}, 'linked')",
    "through a symbolic link": "os.symlink({file!r}, 'way'); open('way', 'w')",
    "mkdir": "os.mkdir({folder!r} + '/new')",
    "rmdir": "os.rmdir({folder!r} + '/empty')",
    "fifo": "os.mkfifo({folder!r} + '/fifo')",
    "chmod": "os.chmod({file!r}, 0o777)",
    "chown": "os.chown({file!r}, 1234, 1234)",
    "touch": "os.utime({file!r}, (0, 0))",
    "attributes": "os.setxattr({file!r}, 'user.x', b'1')",
    "temporary files of others": "open('/tmp/escaped-from-a-sandbox', 'w')",
    "shared memory": "open('/dev/shm/escaped-from-a-sandbox', 'w')",
}


@pytest.fixture(params=["this kernel", "Linux 5.13"])
def readable(request, tmp_path, tmp_path_factory, monkeypatch):
    """A folder that may be read, as Python's own may; with Landlock as it is here, and as it was first."""
    text, listed, version = sandbox.CONFINE.read_text(), '"/dev/zero"', "libc.syscall(CREATE_RULESET, None, 0, 1)"
    assert listed in text and version in text
    text = text.replace(listed, f"{listed}, {str(tmp_path)!r}")
    if request.param != "this kernel":
        text = text.replace(version, "1")  # it did not know of truncation
    changed = tmp_path_factory.mktemp("changed") / "confine.py"
    changed.write_text(text)
    monkeypatch.setattr(sandbox, "CONFINE", changed)
    return tmp_path


@pytest.mark.parametrize("how", WRITES)
def test_nothing_outside_its_folder_is_written(readable, how):
    os.chmod(readable, 0o777)
    (readable / "empty").mkdir(mode=0o777)
    file = readable / "file"
    file.write_text("as it was")
    os.chmod(file, 0o666)

    def state():
        found = file.stat()
        return sorted(readable.iterdir()), found.st_mode, found.st_uid, found.st_mtime, found.st_nlink

    before = state()
    refused("import os\n" + WRITES[how].format(folder=str(readable), file=str(file)))
    assert state() == before and file.read_text() == "as it was"


def test_what_may_be_read_is_read(readable):
    (readable / "file").write_text("as it was")
    assert run(f"print(open({str(readable / 'file')!r}).read())").stdout == "as it was\n"


def test_secrets_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret-token")
    (tmp_path / "secret").write_text("a-secret-file")
    os.chmod(tmp_path, 0o755)
    assert "a-secret" not in run("import os; print(dict(os.environ))").stdout
    refused(f"open({str(tmp_path / 'secret')!r})")
    refused(f"open('/proc/{os.getpid()}/environ', 'rb').read()")
    refused("open('/proc/self/environ', 'rb').read()")
    refused(f"import os; os.listdir({str(Path.home())!r})")
    refused(f"open({str(ROOT / 'pyproject.toml')!r})")


def test_its_folder_is_gone_afterwards_and_open_to_nobody_else():
    outcome = run("import os; open('x', 'w'); print(os.getcwd(), oct(os.stat('.').st_mode & 0o777))")
    folder, mode = outcome.stdout.split()
    assert not os.path.exists(folder) and mode == "0o700"


# ---- the network ----


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


# ---- processes ----


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
    assert outcome.good and outcome.stdout == f"-1 {denied}\n", outcome


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


# ---- limits ----


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
    assert (outcome.ended, outcome.code) == ("seconds", -signal.SIGKILL) and time.monotonic() - began < 15
    assert 0.4 <= outcome.seconds < 5


def test_memory():
    assert "MemoryError" in run("x = bytearray(300 << 20)", memory=256 << 20).stderr
    outcome = run("x = []\nwhile True: x.append(bytearray(10 << 20))", memory=256 << 20)
    assert outcome.ended == "exit" and outcome.code != 0


@pytest.mark.parametrize("where", ["sys.stdout", "sys.stderr"])
def test_output(where):
    outcome = run(f"import sys\nwhile True: {where}.write('x' * 100_000)", files=1 << 20)
    assert not outcome.good and len(outcome.stdout) + len(outcome.stderr) <= (1 << 20) + 10_000
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
    assert outcome.code == 1 and "not allowed to raise maximum limit" in outcome.stderr, outcome


def test_root_is_a_user_like_any_other():
    """Its capabilities would open a file that nobody may read."""
    refused("import os; os.close(os.open('mine', os.O_CREAT, 0)); open('mine')")


def test_runs_do_not_see_each_other():
    found = []
    both = [
        threading.Thread(
            target=lambda n=n: found.append(
                run(f"import os, time; open('mine', 'w').write('{n}'); time.sleep(0.3); print(open('mine').read())")
            )
        )
        for n in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert sorted(outcome.stdout for outcome in found) == ["0\n", "1\n"]


# ---- where it cannot be done ----


@pytest.mark.parametrize(
    ("line", "broken", "named"),
    [
        ("CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444", "CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 1023", "Landlock"),
        ('"libseccomp.so.2"', '"libnothing.so.2"', "libseccomp2"),
        ("def main(", "import os; os._exit(9)\ndef main(", "ended with 9"),
    ],
)
def test_code_is_not_run_where_it_cannot_be_confined(tmp_path, monkeypatch, line, broken, named):
    text = sandbox.CONFINE.read_text()
    assert line in text
    (tmp_path / "confine.py").write_text(text.replace(line, broken))
    monkeypatch.setattr(sandbox, "CONFINE", tmp_path / "confine.py")
    with pytest.raises(EvalError, match=f"cannot be run safely here, so it is not run: .*{named}") as caught:
        run(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


def test_a_program_cannot_say_that_it_was_not_confined():
    outcome = run(
        "import os, sys\nfor fd in range(3, 64):\n    try: os.write(fd, b'-')\n    except OSError: pass\nsys.exit(1)"
    )
    assert (outcome.ended, outcome.code) == ("exit", 1)


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
