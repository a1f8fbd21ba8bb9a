"""What every test may ask for."""

import functools
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

from tests.engine import starts

# The same examples in every run, nothing written to the tree, and no limit on a single example: machines are shared.
settings.register_profile("project", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent


#: Files that take longest, longest first: two workers that begin with them end together (`.ci/run`).
LONGEST = (
    "engine/test_resume.py",
    "engine/test_goldens.py",
    "engine/test_text.py",
    "engine/test_random.py",
    "unit/test_kernels.py",
)
#: Tests of eval/, the laboratory, which no server needs.
EVAL = re.compile(r"^\s*(?:from|import) eval\b", re.MULTILINE)


def pytest_collection_modifyitems(items):
    """The longest files first, then the other engines, then the rest; the laboratory's tests get their mark."""
    missing = [name for name in LONGEST if not (ROOT / "tests" / name).is_file()]
    if missing:
        raise pytest.UsageError(f"tests/conftest.py names files that are not there: {missing}")
    first = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    engines = ROOT / "tests" / "engine"
    items.sort(key=lambda item: (first.get(item.path, len(first)), engines not in item.path.parents))
    for item in items:
        if engines not in item.path.parents and _is_of_eval(item.path):
            item.add_marker(pytest.mark.lab)


@functools.cache
def _is_of_eval(path: Path) -> bool:
    return EVAL.search(path.read_text("utf-8")) is not None


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of recordings of the RPC authors' code. Fails, never skips, where it is missing."""
    folder = Path(os.environ.get("SGLANG_RPC_GOLDENS") or ROOT.parent / "shared" / "goldens")
    if not (folder / "compress_kv").is_dir():
        pytest.fail(
            f"the goldens are not at {folder}: put them at ../shared/goldens beside the project, "
            "or name their folder in SGLANG_RPC_GOLDENS",
            pytrace=False,
        )
    return folder


#: Starts reported by the workers of pytest-xdist; empty without them.
_by_workers: Counter[str] = Counter()


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["starts"] = dict(starts.counts)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    _by_workers.update(getattr(node, "workeroutput", {}).get("starts", {}))


def pytest_terminal_summary(terminalreporter):
    total = _by_workers + starts.counts
    if total:
        terminalreporter.line(f"engines started: {sum(total.values())}")
    for kind, count in sorted(total.items()):
        terminalreporter.line(f"  {count} {kind}")
