"""What the kernels' benchmark writes, also where a part of it fails; tests/kernels/test_bench.py runs the parts."""

from __future__ import annotations

import csv
import functools
import sys
from types import SimpleNamespace

import pytest
import torch

from eval.bench import kernels
from eval.bench.kernel_parts import Part

OURS = ["scores", "total"]
BOTH = [*OURS, *OURS]


def parts(scene):
    for policy in scene.policies:
        for name in OURS:
            yield Part(policy, name, 10**9, lambda: None)


def a_millisecond(work) -> float:
    work()
    return 1.0


@pytest.fixture
def measured(monkeypatch, tmp_path, capsys):
    """Runs the benchmark of two sizes, on a CPU that has a GPU's name; its rows and what it says."""

    def run(*flags: str) -> tuple[list[dict[str, str]], str]:
        sizes = ["--candidates", "90", "50", "--batch", "2", "--interval", "40", "--window", "8"]
        shape = ["--layers", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "32", "--dtype", "float16"]
        monkeypatch.setattr(sys, "argv", ["kernels", "--out", str(tmp_path), *sizes, *shape, *flags])
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
            patch.setattr(kernels, "copy_bandwidth", lambda: 1e12)
            patch.setattr(kernels, "Scene", functools.partial(kernels.Scene, device="cpu"))
            kernels.main()
        with (tmp_path / "kernels.csv").open(newline="") as file:
            return list(csv.DictReader(file)), "".join(capsys.readouterr())

    monkeypatch.setattr(kernels, "milliseconds", a_millisecond)
    monkeypatch.setattr(kernels, "parts", parts)
    return run


def flashinfer(monkeypatch, lse) -> None:
    """Puts `lse` in the place of FlashInfer's part, which has no kernel for a CPU."""
    module = SimpleNamespace(FlashInferLSE=lambda layers, ring: lse)
    monkeypatch.setitem(sys.modules, "sglang_rpc.scoring.flashinfer_lse", module)


def nothing(compressions, rows, *, selector, visible) -> None:
    pass


def test_flashinfer_is_measured_last(measured, monkeypatch):
    flashinfer(monkeypatch, nothing)
    rows, said = measured()
    assert [row["part"] for row in rows] == [*BOTH, *BOTH, *["flashinfer"] * 4]
    assert [row["policy"] for row in rows[:4]] == ["rpc", "rpc", "peak", "peak"]
    assert [row["policy"] for row in rows[8:]] == ["rpc", "peak"] * 2
    assert [row["candidates"] for row in rows] == [*["90"] * 4, *["50"] * 4, "90", "90", "50", "50"]
    assert {row["microseconds"] for row in rows} == {"1000.0"}
    assert {row["error"] for row in rows} == {""}
    assert "  2 x     90  rpc    scores           1000 us     1.000 GB  100.0 % of a copy's bandwidth\n" in said


def test_the_whole_row_is_asked_of_flashinfer_where_the_softmax_is_over_it(measured, monkeypatch):
    asked = []
    flashinfer(monkeypatch, lambda *_, selector, visible: asked.append((selector, visible)))
    measured()
    assert asked == [("official", False), ("paper", True)] * 2


def test_each_policys_time_stands_beside_the_firsts(measured, monkeypatch):
    flashinfer(monkeypatch, nothing)
    times = iter([1.0, 2.0, 1.5, 2.6, 1.0, 2.0, 1.0, 2.4, 1.0, 1.0, 1.0, 4.0])
    monkeypatch.setattr(kernels, "milliseconds", lambda work: next(times))
    rows, said = measured()
    assert [row["to_first"] for row in rows] == ["", "", "1.5", "1.3", "", "", "1.0", "1.2", "", "1.0", "", "4.0"]
    assert "qwen-7b: a compression of peak takes 1.20 to 1.30 times rpc's\n" in said
    assert "100.0 % of a copy's bandwidth, 1.00 x the first policy's time\n" in said


def test_shapes_are_measured_one_after_the_other_with_the_numbers_given_instead_of_their_own(measured, monkeypatch):
    flashinfer(monkeypatch, nothing)
    rows, said = measured("--shape", "qwen-7b", "qwq-32b", "--policies", "rpc", "--candidates", "50")
    assert [row["shape"] for row in rows] == ["qwen-7b"] * 3 + ["qwq-32b"] * 3
    assert {row["kv_heads"] for row in rows} == {"2"}
    assert "times rpc's" not in said


@pytest.mark.parametrize(("name", "expected"), [("qwen-7b", (28, 28, 4, 128)), ("qwq-32b", (64, 40, 8, 128))])
def test_shapes_are_those_of_the_models(monkeypatch, tmp_path, name, expected):
    monkeypatch.setattr(sys, "argv", ["kernels", "--out", str(tmp_path)])
    shape = kernels.shape_of(name, kernels.arguments())
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim) == expected


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, torch.OutOfMemoryError, None])
def test_a_failure_of_flashinfer_costs_its_part_alone(measured, monkeypatch, kind):
    def fail(compressions, rows, *, selector, visible):
        raise kind("nvcc was not found\nand much more")

    flashinfer(monkeypatch, fail)
    if kind is None:  # it is not installed
        monkeypatch.setitem(sys.modules, "sglang_rpc.scoring.flashinfer_lse", None)
    rows, said = measured()
    assert [row["part"] for row in rows] == [*BOTH, *BOTH, "flashinfer", "flashinfer"]
    assert {row["microseconds"] for row in rows[:8]} == {"1000.0"}
    reason = "ModuleNotFoundError: " if kind is None else f"{kind.__name__}: nvcc was not found"
    for row in rows[8:]:
        assert row["microseconds"] == row["copy_share"] == ""
        assert row["error"].startswith(reason)
        assert f"  2 x     {row['candidates']}  rpc    flashinfer left out: {row['error']}\n" in said


def test_a_row_is_in_the_file_as_soon_as_it_is_measured(measured, monkeypatch, tmp_path):
    def interrupted(compressions, rows, *, selector, visible):
        raise KeyboardInterrupt

    flashinfer(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured()
    with (tmp_path / "kernels.csv").open(newline="") as file:
        assert [row["part"] for row in csv.DictReader(file)] == [*BOTH, *BOTH]


def test_what_was_measured_before_memory_ran_out_is_kept(measured, monkeypatch):
    def too_much(scene):
        for part in parts(scene):
            if (part.policy, part.name) == ("peak", "total") and scene.compressions[0].candidates == 90:
                raise torch.OutOfMemoryError
            yield part

    flashinfer(monkeypatch, nothing)
    monkeypatch.setattr(kernels, "parts", too_much)
    rows, said = measured()
    assert [row["part"] for row in rows[:8]] == [*OURS, "scores", "all others", *BOTH]
    assert "  2 x     90  all    all others left out: more than this GPU holds" in said
