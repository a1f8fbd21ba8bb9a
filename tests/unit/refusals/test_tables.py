"""Every row has an example, and the generated pages are current."""

from __future__ import annotations

import runpy

import pytest

from sglang_rpc.contract.refusals.model import MODEL_ROWS
from sglang_rpc.contract.refusals.request import REQUEST_ROWS
from sglang_rpc.contract.refusals.server import SERVER_ROWS
from tests.unit.refusals.examples import (
    MODEL_EXAMPLES,
    REQUEST_EXAMPLES,
    ROOT,
    SERVER_EXAMPLES,
)


@pytest.mark.parametrize(
    ("rows", "examples"),
    [(SERVER_ROWS, SERVER_EXAMPLES), (MODEL_ROWS, MODEL_EXAMPLES), (REQUEST_ROWS, REQUEST_EXAMPLES)],
    ids=["server", "model", "request"],
)
def test_every_row_has_an_example_and_a_name_of_its_own(rows, examples):
    names = [row.name for row in rows]
    assert sorted(names) == sorted(examples)
    assert len(set(names)) == len(names)


def test_the_page_has_every_row():
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    for row in SERVER_ROWS:
        assert f"| `unsupported.{row.name}` | {row.switches} | {row.why} | {row.way_out} |" in page
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    assert generate["MODELS"].keys() == {row.name for row in MODEL_ROWS}
    for row in MODEL_ROWS:
        not_supported, supported = generate["MODELS"][row.name]
        way_out = row.way_out or generate["ONLY_OFF"]
        assert f"| `unsupported.{row.name}` | {not_supported} | {supported} | {row.why} | {way_out} |" in page
    for row in REQUEST_ROWS:
        assert f"| `request.{row.name}` | {row.why} |" in page


@pytest.mark.parametrize("name", ["architectures.md", "limits.md", "reference.md"])
def test_generated_pages_are_current(name):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert page == runpy.run_path(str(ROOT / "docs" / "generate.py"))["PAGES"][name](), "run: python docs/generate.py"
