"""What of a log goes into the summary, and how much of the logs into the archive."""

import random
import tarfile

import pytest

from launch.gpu_check import archive
from launch.gpu_check.digest import MOST_DETAILS, WIDTH, digest
from launch.gpu_check.report import Result, State, Summary, verdict
from launch.gpu_check.step import CLOSING, PASSED
from launch.gpu_check.steps import STEPS
from tests.unit.gpu_check.conftest import step


def of(tmp_path, text: str, failed: bool = False, **more):
    log = tmp_path / "log"
    log.write_text(text)
    return digest(log, step("", **more), failed)


def test_the_last_headline_counts_and_others_are_details(tmp_path):
    found = of(tmp_path, "[check] a\nnoise\n[check] b\n", details=r"^\[check\] ")
    assert (found.headline, found.details, found.proven) == ("b", ("a",), True)


def test_a_progress_bars_states_are_lines(tmp_path):
    assert of(tmp_path, " 1%|x\r[check] 3 us\r 9%|x\n").headline == "3 us"


def test_lines_are_cut_and_without_colours(tmp_path):
    assert of(tmp_path, "[check] \x1b[31m" + "x" * 999).headline == "x" * WIDTH


def test_details_are_few(tmp_path):
    text = "".join(f"[check] {i}\n" for i in range(99))
    assert len(of(tmp_path, text, details=r"^\[check\] ").details) == MOST_DETAILS


@pytest.mark.parametrize(
    ("closing", "proven"),
    [("3 passed, 1 skipped in 2.00s", True), ("4 skipped in 2.00s", False), ("no tests ran in 0.1s", False)],
)
def test_tests_that_were_all_skipped_prove_nothing(tmp_path, closing, proven):
    assert of(tmp_path, closing + "\n", headline=CLOSING, proof=PASSED).proven is proven


def test_of_a_failed_test_its_name_and_its_reason_are_shown(tmp_path):
    text = "E   AssertionError: 3 != 4\nE       assert 3 == 4\nFAILED tests/a.py::b - AssertionError\n1 failed in 2s\n"
    found = of(tmp_path, text, failed=True, headline=CLOSING)
    assert found.headline == "1 failed in 2s"
    assert found.details[0] == "FAILED tests/a.py::b - AssertionError"
    assert "E   AssertionError: 3 != 4" in found.details


def test_of_a_crash_without_a_word_the_last_lines_are_shown(tmp_path):
    assert of(tmp_path, "a\nb\n\nc\nd\n", failed=True).details == ("b", "c", "d")
    assert of(tmp_path, "[gpu_check] $ python\nd\n", failed=True).details == ("d",)


def test_what_went_well_shows_no_reasons(tmp_path):
    assert of(tmp_path, "RuntimeError: caught\n[check] fine\n").details == ()


# ---- the summary


def test_a_step_is_a_line_and_its_details_are_indented(tmp_path, capsys):
    summary = Summary(tmp_path / "summary.txt")
    summary.say(*Result("kernels", State.OK, 81.4, "417 passed in 80.1s").lines())
    summary.say(*Result("storm", State.TIMEOUT, 150.2, "", ("ERROR tests/x.py",)).lines())
    expected = (
        "kernels          OK         81 s  417 passed in 80.1s\n"
        "storm            TIMEOUT   150 s\n"
        "    ERROR tests/x.py\n"
    )
    assert (tmp_path / "summary.txt").read_text() == capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("states", "sentence"),
    [
        ([State.OK, State.SKIPPED], "works on this GPU"),
        ([State.OK, State.NOT_RUN], "were not asked: step 1"),
        ([State.NOT_RUN, State.TIMEOUT, State.FAILED], "does not work here: step 1, step 2"),
        ([State.SKIPPED], "Nothing was asked"),
    ],
)
def test_the_verdict(states, sentence):
    results = [Result(f"step {index}", state) for index, state in enumerate(states)]
    assert sentence in verdict(results, cuda=True)
    assert "works on this GPU" not in verdict(results, cuda=False)


def test_the_longest_name_fits_its_column():
    names = [*STEPS, *(f"{name}-triton" for name, entry in STEPS.items() if entry.again_with_triton)]
    assert max(map(len, names)) <= 16


# ---- the archive


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "report" / "logs").mkdir(parents=True)
    return tmp_path / "report"


def unpacked(path) -> dict[str, bytes]:
    with tarfile.open(path) as made:
        return {entry.name: made.extractfile(entry).read() for entry in made.getmembers()}


def test_what_is_small_is_packed_whole(folder, tmp_path):
    (folder / "logs" / "a.log").write_text("one\n")
    assert archive.pack(folder, tmp_path / "logs.tgz", 10**6) == []
    assert unpacked(tmp_path / "logs.tgz") == {"logs/a.log": b"one\n"}


def test_what_is_large_is_cut_until_the_archive_fits(folder, tmp_path):
    noise = random.Random(0).randbytes(600_000)
    (folder / "logs" / "a.log").write_bytes(b"begin" + noise + b"end")
    (folder / "logs" / "b.log").write_text("small\n")
    assert archive.pack(folder, tmp_path / "logs.tgz", 100_000) == ["logs/a.log"]
    assert (tmp_path / "logs.tgz").stat().st_size <= 100_000
    found = unpacked(tmp_path / "logs.tgz")
    assert found["logs/b.log"] == b"small\n"
    assert found["logs/a.log"].startswith(b"begin")
    assert found["logs/a.log"].endswith(b"end")
    assert b"bytes left out ...]" in found["logs/a.log"]
    assert list(tmp_path.glob("*.new")) == []


def test_what_cannot_fit_leaves_no_archive(folder, tmp_path):
    for index in range(40):
        (folder / "logs" / f"{index}.log").write_bytes(random.Random(index).randbytes(5000))
    (tmp_path / "logs.tgz").write_text("of an earlier step")
    assert len(archive.pack(folder, tmp_path / "logs.tgz", 20_000)) == 40
    assert list(tmp_path.glob("logs.tgz*")) == []


def test_the_archive_does_not_say_who_made_it(folder, tmp_path):
    (folder / "a").write_text("")
    archive.pack(folder, tmp_path / "logs.tgz", 10**6)
    with tarfile.open(tmp_path / "logs.tgz") as made:
        assert {(entry.uname, entry.uid) for entry in made.getmembers()} == {("", 0)}
