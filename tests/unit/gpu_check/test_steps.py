"""The table of steps names tests, programs and flags that exist."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.bench import kernels
from eval.bench import options as bench
from launch.gpu_check import digest, options
from launch.gpu_check.commands import command_of
from launch.gpu_check.host import BACKENDS, Host
from launch.gpu_check.programs import pairs
from launch.gpu_check.steps import BENCH, REST, STEPS
from tests.conftest import ROOT

#: Its tests can't be collected without a GPU.
NEEDS_A_GPU = {"flashinfer-lse"}


def words(name: str, *flags: str) -> tuple[str, ...]:
    given = options.read(["--out", "/out", *flags])
    return command_of(STEPS[name], name, STEPS[name].box, given, Host(), "flashinfer").words


def pytest_arguments(found: tuple[str, ...]) -> list[str]:
    arguments = list(found[found.index("pytest") + 1 :])
    if "gpu" in arguments and any(word.startswith("tests/kernels") for word in arguments):
        arguments = arguments[arguments.index("gpu") + 1 :]  # the interpreter marks none
    return arguments


TESTS = [name for name, step in STEPS.items() if "pytest" in step.command]


def test_each_pytest_command_selects_tests():
    asked = [name for name in TESTS if name not in NEEDS_A_GPU]
    assert len(asked) >= 10
    commands = {name: words(name) for name in asked} | {"interpreted": words("kernels", "--interpreter")}
    driver = Path(__file__).with_name("collect_driver.py")
    done = subprocess.run(
        [sys.executable, driver, json.dumps([pytest_arguments(command) for command in commands.values()])],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    counts = dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))
    assert all(counts.values()), counts
    assert counts["recordings"] == 10
    assert counts["fp8"] == 2
    assert counts["storm"] == counts["lora"] == counts["latent"] == 1
    assert counts["kernels"] > counts["interpreted"] > 50


@pytest.mark.parametrize("name", [name for name, step in STEPS.items() if "pytest" not in step.command])
def test_each_program_exists(name):
    module = words(name)[2]
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("step", BENCH, ids=lambda step: step.name)
def test_the_benchmark_understands_its_flags(step):
    found = list(words(step.name))
    asked = bench.read(["--out", *found[3:]])
    assert [arm.name for arm in asked.arms][:2] == ["stock", "rpc"]
    assert asked.settings.device == "cuda"
    assert asked.settings.server_flags[:2] == ("--attention-backend", "flashinfer")
    (workload,) = asked.workloads
    assert workload.prompt_tokens + workload.output_tokens < 8192
    assert (workload.pool_tokens < workload.offered_tokens / 3) == (step.name == "tight")


def test_the_kernels_benchmark_understands_its_flags(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kernels", *words("timings")[3:]])
    assert kernels.arguments().candidates == [1024, 4096, 16384]


def test_the_kernels_benchmark_says_what_the_summary_shows(tmp_path):
    """Its headline, its proof, and the largest size's rows."""
    measured = [("rpc", ("scores", "select", "move", "total")), ("peak", ("scores", "select", "total"))]
    results = [
        kernels.Result(policy, part, size, 64, 900.0, 1.0, 0.7, None if policy == "rpc" else 1.25)
        for size in (4096, 16384)
        for policy, parts in measured
        for part in parts
    ]
    log = tmp_path / "log"
    log.write_text("".join(f"{line}\n" for line in (*results, *kernels.verdicts(results))))
    found = digest.digest(log, STEPS["timings"], failed=False)
    assert found.headline == "a compression of peak takes 1.25 to 1.25 times rpc's"
    assert found.proven
    shown = [line.split()[2:5] for line in found.details]
    assert shown == [["16384", "rpc", part] for part in ("scores", "select", "move")] + [["16384", "peak", "scores"]]


def test_every_attention_backend_has_a_step():
    assert [name.removeprefix("dense-") for name in STEPS if name.startswith("dense-")] == sorted(
        BACKENDS, reverse=True
    )


def test_a_step_begins_only_if_it_can_get_somewhere_and_names_are_short_enough_to_type():
    for step in STEPS.values():
        assert 10 <= step.least < step.box <= 420
        assert step.name == step.name.lower().replace("_", "-")
    assert {step.name for step in REST} >= {"memcheck", "racecheck", "fp8", "latent", "lora", "recordings"}


def test_a_benchmarks_rows_are_lines_for_the_summary():
    rows = pairs.lines(ROOT / "eval" / "results" / "cpu-tiny-tight" / "results.csv")
    stock = next(row for row in rows if row.startswith("stock "))
    assert "tok/s, at once 0.999 (peak 1), retractions 0, late 0, errors 0 (39.08 s to start)" in stock
    assert any(row.startswith("rpc ") for row in rows)
    assert pairs.lines(ROOT / "no such file") == []
