"""Programs in the sandbox: what a solution needs works, and nothing is run where it cannot be confined."""

from __future__ import annotations

import os
import resource
import signal

import pytest

from eval.accuracy import sandbox
from eval.accuracy.errors import EvalError
from tests.unit.sandbox.programs import run


def test_it_works_in_a_process_with_many_files_open():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert run("print(2)").stdout == "2\n"
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
    assert outcome.good, outcome
    assert outcome.stdout == "50000 é\ntoo __main__\n", outcome


def test_what_numpy_needs_works():
    outcome = run("import numpy; print(int(numpy.linalg.det(numpy.eye(300) * 1.0) + 0.5))")
    assert outcome.good, outcome
    assert outcome.stdout == "1\n", outcome


def test_a_program_that_fails_says_why():
    outcome = run("import sys; print('partly'); sys.exit(3)")
    assert (outcome.ended, outcome.code, outcome.stdout, outcome.good) == ("exit", 3, "partly\n", False)
    assert "ZeroDivisionError" in run("1 / 0").stderr
    assert "SyntaxError" in run("if").stderr
    assert run("import os; os.abort()").code == -signal.SIGABRT


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
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_program_cannot_say_that_it_was_not_confined():
    outcome = run(
        "import os, sys\nfor fd in range(3, 64):\n    try: os.write(fd, b'-')\n    except OSError: pass\nsys.exit(1)"
    )
    assert (outcome.ended, outcome.code) == ("exit", 1)
