"""launch/gpu_check/check.py: time boxes, the budget, what is left out and why, and the exit status."""

import re
import tarfile

import pytest

from launch.gpu_check import check
from launch.gpu_check.host import Host
from launch.gpu_check.report import State
from tests.unit.gpu_check.conftest import step

GOOD = "print('[check] good')"


def states(results) -> dict[str, State]:
    return {result.name: result.state for result in results}


def test_each_runs_whatever_became_of_those_before_it(run):
    results = run(
        step("import os; os.abort()", "crash"),
        step("raise ValueError('no')", "raise"),
        step("import time; time.sleep(300)", "hang", box=1),
        step("print('nothing of use')", "silent"),
        step(GOOD, "good"),
    )
    assert states(results) == {
        "crash": State.FAILED,
        "raise": State.FAILED,
        "hang": State.TIMEOUT,
        "silent": State.FAILED,
        "good": State.OK,
    }
    lines = run.summary().splitlines()
    assert re.match(r"crash +FAILED +\d+ s  \(signal 6\)", lines[0])
    assert "    ValueError: no" in lines
    assert re.match(r"good +OK +\d+ s  good$", lines[-1])


def test_a_step_that_has_too_little_time_left_is_not_begun(run):
    results = run(step(GOOD, "a"), step(GOOD, "b", least=20), step(GOOD, "c"), budget=check.RESERVE + 15)
    assert states(results) == {"a": State.OK, "b": State.NOT_RUN, "c": State.OK}
    assert "s left, needs 20; --steps b runs it alone" in run.summary()


def test_the_budget_ends_a_step_before_its_box(run):
    results = run(step("import time; time.sleep(300)", "a", box=300), step(GOOD, "b"), budget=check.RESERVE + 3)
    assert states(results) == {"a": State.TIMEOUT, "b": State.NOT_RUN}
    assert results[0].seconds < 10
    assert re.search(r"the budget left it \d of 300 s", results[0].headline)


def test_leftovers_of_a_step_that_went_well_are_told(run):
    left = "import subprocess, sys\nsubprocess.Popen(['sleep', '300'], start_new_session=True)\n"
    assert run(step(left + GOOD))[0].details == ("1 processes were left running, and were killed",)


def test_what_the_host_lacks_is_skipped_and_what_can_be_installed_is_not_run(run):
    lacking = Host(backends=("triton",), missing=frozenset({"pytest", "xdist"}), sanitizer=None)
    results = run(
        step(GOOD, "fa3", backend="fa3"),
        step(GOOD, "triton", backend="triton"),
        step(GOOD, "memcheck", tool="compute-sanitizer"),
        step(GOOD, "tests", modules=("torch", "pytest", "xdist")),
        on=lacking,
    )
    expected = {"fa3": State.SKIPPED, "triton": State.OK, "memcheck": State.SKIPPED, "tests": State.NOT_RUN}
    assert states(results) == expected
    assert "pip install pytest pytest-timeout pytest-xdist" in run.summary()


def test_a_backend_is_tried_where_the_doctor_could_not_be_asked(run):
    assert run(step(GOOD, backend="fa3"), on=Host(backends=None))[0].state is State.OK


def test_what_fails_with_a_backend_runs_with_triton_and_so_do_later_steps(run):
    picky = "import sys; assert sys.argv[1] == 'triton', sys.argv[1]; print('[check]', *sys.argv[1:])"
    first = step(picky, "stock", again_with_triton=True)
    first = first.__class__(**{**vars(first), "command": (*first.command, "{backend}", "{name}")})
    later = first.__class__(**{**vars(first), "name": "tight"})
    results = run(first, later, on=Host(backends=("flashinfer", "triton")))
    assert states(results) == {"stock": State.FAILED, "stock-triton": State.OK, "tight": State.OK}
    assert [result.headline for result in results[1:]] == ["triton stock-triton", "triton tight"]


def test_what_was_not_begun_for_want_of_time_says_nothing_about_its_backend(run):
    late = step(GOOD, "stock", least=100, again_with_triton=True)
    results = run(late, budget=check.RESERVE + 20)
    assert states(results) == {"stock": State.NOT_RUN}


def test_missing_recordings_are_made_once_before_the_first_step_that_reads_them(run, tmp_path, monkeypatch):
    made = step("print('[check] made')", "self-made")
    monkeypatch.setattr(check, "SELF_MADE", made)
    reads = "import os; print('[check]', os.environ['SGLANG_RPC_GOLDENS'])"
    env = {"SGLANG_RPC_GOLDENS": str(tmp_path / "none")}
    results = run(step(reads, "a"), step(reads, "b", goldens=True), step(reads, "c", goldens=True), env=env)
    own = str(run.options.work / "goldens")
    assert [(result.name, result.headline) for result in results] == [
        ("a", str(tmp_path / "none")),
        ("self-made", "made"),
        ("b", own),
        ("c", own),
    ]


def test_recordings_that_are_there_are_read(run, tmp_path):
    reads = "import os; print('[check]', os.environ['SGLANG_RPC_GOLDENS'])"
    assert [result.headline for result in run(step(reads, goldens=True))] == [str(tmp_path / "goldens")]


def test_in_the_interpreter_only_what_can_do_without_a_gpu_runs(run):
    both = step(
        "raise SystemExit(1)",
        "both",
        interpreted=("{python}", "-c", "import os; print('[check]', os.environ['TRITON_INTERPRET'])"),
    )
    results = run(step(GOOD, "gpu"), both, on=Host(cuda=False), flags=["--interpreter"])
    assert states(results) == {"gpu": State.SKIPPED, "both": State.OK}
    assert results[1].headline == "1"


def test_the_archive_is_renewed_after_each_step(run, tmp_path):
    run(
        step(GOOD, "a"),
        step(
            f"import tarfile; print('[check]', len(tarfile.open({str(tmp_path / 'out/logs.tgz')!r}).getnames()))", "b"
        ),
    )
    assert "  2\n" in run.summary()  # a.log and the summary
    with tarfile.open(tmp_path / "out" / "logs.tgz") as archive:
        assert archive.getnames() == ["logs/a.log", "logs/b.log", "summary.txt"]
        assert b"[check] good" in archive.extractfile("logs/a.log").read()


def test_every_step_finds_this_checkout_and_keeps_the_callers_path():
    env = check.environment({"PYTHONPATH": "/site", "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "1"})
    assert env["PYTHONPATH"] == f"{check.ROOT}:/site"
    assert env["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] == "1"  # what the caller says is left alone
    assert check.environment({})["SGLANG_CUDA_COREDUMP_BEFORE_CRASH"] == "0"


# ---- the command


@pytest.mark.parametrize(
    ("code", "status", "sentence"),
    [(GOOD, 0, "works on this GPU"), ("raise SystemExit(9)", 1, "does not work here: one")],
)
def test_the_exit_status_tells_whether_all_went_well(command, code, status, sentence):
    found, out, _ = command("--steps", "one", table=(step(code),))
    assert found == status
    assert sentence in out
    assert out.startswith("sglang-rpc ")
    assert (command.out / "summary.txt").read_text() in out
    assert sorted(path.name for path in command.out.iterdir()) == ["logs.tgz", "summary.txt", "work"]


def test_what_is_too_large_for_the_archive_is_named(command):
    noisy = "import random; print(random.Random(0).randbytes(300_000).hex()); print('[check] good')"
    _, out, _ = command("--steps", "one", "--archive-mib", "0.1", table=(step(noisy),))
    assert "too large for logs.tgz, and shortened: logs/one.log\n" in out
    assert (command.out / "logs.tgz").stat().st_size <= 0.1 * 2**20


def test_a_step_without_time_is_not_all_well(command):
    flags = ("--steps", "one", "--budget", str(check.RESERVE + 2))
    assert command(*flags, table=(step(GOOD, least=60),))[0] == 1


def test_without_a_gpu_nothing_runs_unless_the_interpreter_is_asked_for(command):
    table = (step(GOOD, interpreted=("{python}", "-c", GOOD)),)
    status, out, _ = command("--steps", "one", table=table, on=Host(cuda=False))
    assert status == 1
    assert "--interpreter" in out
    assert "good" not in out
    status, out, _ = command("--steps", "one", "--interpreter", table=table, on=Host(cuda=False))
    assert status == 0
    assert "says nothing about a GPU" in out


def test_ctrl_c_leaves_a_summary_and_an_archive(command, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(check.processes, "run", interrupted)
    status, out, _ = command("--steps", "one", table=(step(GOOD),))
    assert status == 130
    assert out.endswith("interrupted during one\n")
    assert (command.out / "logs.tgz").is_file()


def test_only_two_files_lie_in_out_if_the_work_is_elsewhere(command, tmp_path):
    command("--steps", "one", "--work", str(tmp_path / "work"), table=(step(GOOD),))
    assert sorted(path.name for path in command.out.iterdir()) == ["logs.tgz", "summary.txt"]
