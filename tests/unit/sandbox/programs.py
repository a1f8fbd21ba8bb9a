"""Programs run in the sandbox."""

from __future__ import annotations

import textwrap

from eval.accuracy import sandbox
from eval.accuracy.sandbox import Limits

LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def run(program: str, stdin: str = "", **limits) -> sandbox.Outcome:
    return sandbox.run(textwrap.dedent(program), stdin, Limits(**limits))


def refused(program: str) -> None:
    """`program` must be stopped by an error of permission, and by nothing else."""
    outcome = run(program + "\nprint('done')")
    assert (outcome.ended, outcome.code) == ("exit", 1), outcome
    assert "done" not in outcome.stdout, outcome
    assert "PermissionError" in outcome.stderr, outcome
