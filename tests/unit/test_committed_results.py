"""The results in eval/results are what this version reads and would write."""

from pathlib import Path

import pytest

from eval.bench import summary, table
from eval.trace_view import reader

RESULTS = Path(__file__).resolve().parents[2] / "eval" / "results"
TABLES = sorted(path.parent for path in RESULTS.glob("*/results.csv"))


@pytest.mark.parametrize("folder", TABLES, ids=lambda folder: folder.name)
def test_a_committed_summary_is_what_its_rows_give(folder, tmp_path):
    rows = table.read(folder / "results.csv")
    summary.write(tmp_path / "summary.csv", summary.summarise(rows, "stock"))
    assert (tmp_path / "summary.csv").read_text("utf-8") == (folder / "summary.csv").read_text("utf-8")


def test_there_are_tables():
    assert len(TABLES) == 12


def test_the_committed_trace_can_be_shown():
    trace = reader.read(RESULTS / "trace-reasoner" / "trace.jsonl")
    assert len(trace.compressions) == 8
