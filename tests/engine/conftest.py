"""Engines for tests: SGLang's strict checks on, one engine alive at a time, shared by the tests of a module."""

from __future__ import annotations

import os

# The checks a leak or a double free would trip. Read when SGLang is imported, so set before.
os.environ.setdefault("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "1")
os.environ.setdefault("SGLANG_CHECK_KV_PAGE_INVARIANTS", "1")
os.environ.setdefault("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE", "1")
# When a process of its crashes, SGLang waits a minute for a CUDA core dump that nobody reads.
os.environ.setdefault("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "0")

import pytest

from tests.engine import forked

HERE = os.path.dirname(__file__)


def pytest_collection_modifyitems(items):
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.engine)


def pytest_sessionfinish():
    forked.stop()
