"""Engines with `--rpc-reuse`: their shapes, which of these a run has by default, and what must hold after each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.engines import Golden, assert_balanced, engine, flush, look_inside

_SHAPES = {
    "default": {},
    "page_16": dict(page_size=16),
    "no_overlap": dict(disable_overlap_schedule=True),
    "mixed_chunks": dict(enable_mixed_chunk=True, chunked_prefill_size=16),
    "tp_2": dict(tp_size=2),
    "retracted": {},
    "retracted_page_16": dict(page_size=16),
}
_BY_DEFAULT = ("default", "retracted_page_16")
#: For a fixture of one engine per shape.
SHAPES = [pytest.param(name, marks=() if name in _BY_DEFAULT else pytest.mark.long) for name in _SHAPES]


@contextmanager
def serving(golden: Golden, reuse: str, name: str) -> Iterator[tuple[Any, int]]:
    """An engine and its page size. `retracted`: SGLang retracts a request in every third step."""
    shape, retracted = _SHAPES[name], name.startswith("retracted")
    with pytest.MonkeyPatch.context() as patch:
        if retracted:
            patch.setenv("SGLANG_TEST_RETRACT", "1")
        with engine(golden.path, replace(golden.config, reuse=reuse), **shape) as running:
            running.retracts = retracted
            yield running, shape.get("page_size", 1)


def check_and_flush(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """After a test: every slot is where it belongs, and the next one finds an empty tree."""
    if "served" in request.fixturenames:
        running = request.getfixturevalue("served")[0]
        assert_balanced(look_inside(running, tmp_path, [1]))
        flush(running)
