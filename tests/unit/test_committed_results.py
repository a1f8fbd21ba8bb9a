"""The results in eval/results are what this version reads and would write."""

import csv
import math
from pathlib import Path

import pytest

from eval.accuracy.errors import EvalError
from eval.bench import reuse_accuracy, speculative, summary, table
from eval.compare import ladder, registration, verdict, written
from eval.compare.arms import Arm
from eval.fidelity import summary as fidelity
from eval.fidelity.rows import Row
from eval.retokenized import summary as retokenized
from eval.trace_view import reader

RESULTS = Path(__file__).resolve().parents[2] / "eval" / "results"
FIDELITY = sorted(path.parent for path in RESULTS.glob("*-fidelity/summary.csv"))
TABLES = sorted(path.parent for path in RESULTS.glob("*/results.csv"))


@pytest.mark.parametrize("folder", TABLES, ids=lambda folder: folder.name)
def test_a_committed_summary_is_what_its_rows_give(folder, tmp_path):
    rows = table.read(folder / "results.csv")
    summary.write(tmp_path / "summary.csv", summary.summarise(rows, "stock"))
    assert (tmp_path / "summary.csv").read_text("utf-8") == (folder / "summary.csv").read_text("utf-8")


def test_there_are_tables():
    assert len(TABLES) == 12


def test_the_committed_ladder_is_what_its_comparisons_give():
    found = [ladder.load(RESULTS / f"cpu-reasoner-{level}") for level in ("near", "far", "many")]
    assert (RESULTS / "cpu-reasoner-ladder" / "ladder.md").read_text("utf-8") == ladder.markdown(found)


@pytest.mark.parametrize(
    "folder", sorted(RESULTS.glob("cpu-reasoner-*/problems.csv")), ids=lambda path: path.parent.name
)
def test_a_committed_comparison_can_be_read(folder):
    rows, shares = written.summary(folder.parent), written.problems(folder.parent)
    assert [row["arm"] for row in rows] == list(shares)
    assert all(float(row["held_entries"]) <= float(row["peak_entries"]) + 1e-3 for row in rows)
    assert all(0.5 * (1 + float(row["held_entries"])) - 1 < float(row["mean_entries"]) for row in rows)


def test_a_committed_verdict_is_what_its_registration_gives():
    registered: dict[str, list[Path]] = {}
    for path in sorted(RESULTS.glob(f"*/{registration.NAME}")):
        registered.setdefault(path.read_text("utf-8"), []).append(path.parent)
    for folders in registered.values():
        committed = [folder / "verdict.md" for folder in folders if (folder / "verdict.md").exists()]
        try:
            said, found = verdict.load(folders)
        except (EvalError, OSError):
            assert committed == [], "a verdict on what is not measured yet"
            continue
        text = verdict.markdown(said, found, verdict.judged(said, found))
        assert [path.read_text("utf-8") for path in committed] == [text], folders


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("near-rpc-P64-R32-c4", 100),
        ("near-rpc-P64-R32-c8", 100),
        ("far-rpc-P64-R32-c4", 100),
        ("far-peak-P64-R32-c4", 300),
    ],
)
def test_the_server_and_the_plain_loop_gave_equal_texts(name, problems):
    with (RESULTS / "cpu-reasoner-parity" / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["problem"] for row in rows}) == len(rows) == problems
    assert {(row["same_answer"], row["same_text"]) for row in rows} == {("True", "True")}


def test_the_committed_trace_can_be_shown():
    trace = reader.read(RESULTS / "trace-reasoner" / "trace.jsonl")
    assert len(trace.compressions) == 8


@pytest.mark.parametrize("folder", sorted(RESULTS.glob("*-retokenized")), ids=lambda folder: folder.name)
def test_a_committed_count_of_other_tokens_is_what_its_texts_give(folder, tmp_path):
    lines = retokenized.summary(retokenized.read_rows(folder / "texts.csv"))
    retokenized.write(lines, tmp_path / "summary.csv")
    assert (tmp_path / "summary.csv").read_text() == (folder / "summary.csv").read_text()
    assert (folder / "summary.md").read_text() == retokenized.markdown(lines)


def test_the_committed_summary_of_interrupted_thoughts_is_what_its_problems_give():
    folder = RESULTS / "cpu-reasoner-reuse"
    rows = reuse_accuracy.read(folder / "cuts.csv")
    assert (folder / "summary.md").read_text() == reuse_accuracy.summary(rows)


@pytest.mark.parametrize("name", [folder.name for folder in sorted(RESULTS.glob("cpu-reasoner-drafts*"))])
def test_the_committed_summary_of_drafts_is_what_its_problems_give(name):
    folder = RESULTS / name
    rows = speculative.read(folder / "drafts.csv")
    assert (folder / "summary.md").read_text() == speculative.summary(rows)
    assert all(row.same for row in rows)


@pytest.mark.parametrize("folder", FIDELITY, ids=lambda folder: folder.name)
def test_a_committed_fidelity_is_what_its_texts_give(folder):
    """Numbers were rounded to six digits, in both files."""
    found: dict[Arm, list[Row]] = {}
    for line in csv.DictReader((folder / "texts.csv").open()):
        row = Row(**{name: v if name in ("arm", "policy", "text") else float(v) for name, v in line.items()})
        interval, window, least = (int(value) for value in (row.interval, row.window, row.min_kept))
        found.setdefault(Arm(row.policy, interval, window, row.ratio, least), []).append(row)
    told = list(csv.DictReader((folder / "summary.csv").open()))
    made = fidelity.summary(found, "rpc")
    assert [row["arm"] for row in made] == [row["arm"] for row in told]
    for ours, theirs in zip(made, told, strict=True):
        assert tuple(theirs) == fidelity.COLUMNS
        for name in fidelity.COLUMNS[3:]:
            if ours[name] is None:
                assert theirs[name] == ""
            elif math.isnan(ours[name]):
                assert theirs[name] == "nan"
            else:
                assert float(theirs[name]) == pytest.approx(ours[name], rel=1e-3, abs=1e-5), name
    assert (folder / "summary.md").read_text() == fidelity.markdown(made, found, "rpc")
    assert (folder / "registered.md").exists()
