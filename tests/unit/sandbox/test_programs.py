"""The sandbox that runs what models write: what a solution needs works."""

from __future__ import annotations

import signal

from tests.unit.sandbox.programs import run


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
