"""Runs tests/kernels in Triton's interpreter, which needs a process of its own (see tests/kernels/conftest.py)."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    print(done.stdout.splitlines()[-1])
