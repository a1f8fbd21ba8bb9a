"""The command line of launch/gpu_check.sh, which must work in a fresh clone: no GPU, no SGLang, no package at all."""

import os
import shutil
import subprocess
import sys

import pytest

from launch.gpu_check import host, options
from launch.gpu_check.options import FIRST_SECONDS, RESERVE
from launch.gpu_check.steps import BENCH, FIRST, GROUPS, REST, STEPS
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The script and what it starts, without anything else of the checkout; an interpreter without packages."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "launch", folder / "launch", ignore=shutil.ignore_patterns("__pycache__"))

    def go(*flags: str):
        env = {"PATH": os.environ["PATH"], "PYTHON": getattr(sys, "_base_executable", sys.executable)}
        command = ["bash", str(folder / "launch" / "gpu_check.sh"), *flags]
        return subprocess.run(command, env=env, cwd=folder.parent, capture_output=True, text=True, timeout=60)

    return go


def test_a_dry_run_names_every_steps_command_box_and_question(clone):
    done = clone("--dry-run", "--steps", "first,rest", "--bench")
    assert (done.returncode, done.stderr) == (0, "")
    for step in STEPS.values():
        assert f"{step.name}: {step.asks}\n    box {step.box} s" in done.stdout
    assert "{" not in done.stdout.replace("{sglang", "")  # every word is filled in


def test_the_list_and_the_help(clone):
    listed, shown = clone("--list").stdout, clone("--help").stdout
    assert all(f"  {name} " in listed for name in STEPS)
    assert all(flag in shown for flag in ("--dry-run", "--steps", "--bench", "--budget", "--out", "--interpreter"))


def test_an_unknown_step_is_one_sentence(clone):
    done = clone("--steps", "kernels,nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("gpu_check: no step is called 'nope'; there are first, bench, rest, imports, ")


def test_an_interpreter_that_is_too_old_is_refused(clone, tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "PYTHON": str(old)}
    done = subprocess.run(["bash", ROOT / "launch" / "gpu_check.sh", "--list"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{old} is not Python 3.11" in done.stderr


@pytest.mark.parametrize("flags", [["--budget", "5"], ["--archive-mib", "0"], ["--steps", ","], ["--stepz", "first"]])
def test_what_makes_no_sense_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as end:
        options.read(flags)
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_steps_and_groups_are_taken_in_the_order_given_each_once():
    given = options.read(["--steps", "storm,first, fp8", "--bench"])
    names = [step.name for step in given.steps]
    assert names[0] == "storm"
    assert names[-3:] == ["fp8", "tight", "ample"]
    assert len(names) == len(set(names)) == len(FIRST) + 3


def test_the_first_group_takes_ten_minutes_and_others_their_boxes():
    assert options.read([]).budget == FIRST_SECONDS < 570
    assert options.read(["--bench"]).budget == FIRST_SECONDS + sum(step.box for step in BENCH)
    assert options.read(["--steps", "fp8"]).budget == 260 + RESERVE
    assert options.read(["--steps", "rest"]).budget == sum(step.box for step in REST) + RESERVE


def test_a_first_group_with_everything_slow_still_begins_each_question_of_rpcs_own():
    """Not by their boxes, which are for a host that hangs: by what each must have left."""
    assert sum(step.least for step in GROUPS["first"]) < FIRST_SECONDS - RESERVE


def test_the_page_has_the_tables_steps_and_every_option():
    page = (ROOT / "docs" / "gpu_check.md").read_text()
    rows = [f"| `{step.name}` | {step.asks} | {step.box} |" for step in STEPS.values()]
    assert [line for line in page.splitlines() if line in rows] == rows
    flags = {flag for action in options._parser()._actions for flag in action.option_strings if flag != "-h"}
    assert {flag for flag in flags if f"`{flag}" not in page} == {"--help"}
    assert f"default {FIRST_SECONDS} for the first group" in page


# ---- the host


@pytest.mark.parametrize(("cores", "gib", "processes"), [(16, 80, 12), (16, 16, 8), (2, 80, 2), (16, 1, 1)])
def test_kernels_are_tested_in_as_many_processes_as_fit(cores, gib, processes):
    assert host.Host(cores=cores, gpu_gib=gib).processes == processes


def test_a_benchmark_takes_the_fastest_backend_that_is_there():
    assert host.Host(backends=("flashinfer", "triton")).fastest_backend == "flashinfer"
    assert host.Host(backends=("triton",)).fastest_backend == "triton"
    assert host.Host(backends=None).fastest_backend == "flashinfer"


def test_a_host_without_pytorch_is_described_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(host.sys, "executable", getattr(sys, "_base_executable", sys.executable))
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}
    found = host.ask(frozenset({"json", "no_such_module"}), env, tmp_path / "log")
    assert not found.cuda
    assert found.missing == {"no_such_module"}
    (note,) = found.notes
    assert "not installed" in note
    assert "torch, triton, sglang" in note
    assert "GPU: PyTorch sees no CUDA device" in list(found.lines())


def test_a_host_that_cannot_even_answer_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(host.sys, "executable", "/bin/false")
    found = host.ask(frozenset(), {"PATH": "/bin"}, tmp_path / "log")
    assert not found.cuda
    assert "ended with status 1: see log" in found.notes[0]


def test_the_commit_is_this_checkouts_and_not_that_of_one_around_it(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(host, "ROOT", tmp_path / "inner")
    assert host.commit() == "unknown"
