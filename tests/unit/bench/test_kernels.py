"""What the kernels' benchmark writes, also where a part of it fails; tests/kernels/test_bench.py runs the parts."""

from __future__ import annotations

import csv
import functools
import sys
from types import SimpleNamespace

import pytest
import torch

from eval.bench import kernels

OURS = ["scores", "select", "total"]


def parts(scene):
    for name in OURS:
        yield name, 10**9, lambda: None


def a_millisecond(work) -> float:
    work()
    return 1.0


@pytest.fixture
def measured(monkeypatch, tmp_path, capsys):
    """Runs the benchmark of two sizes, on a CPU that has a GPU's name; its rows and what it says."""

    def run() -> tuple[list[dict[str, str]], str]:
        sizes = ["--candidates", "90", "50", "--batch", "2", "--interval", "40", "--window", "8"]
        shape = ["--layers", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "32", "--dtype", "float16"]
        monkeypatch.setattr(sys, "argv", ["kernels", "--out", str(tmp_path), *sizes, *shape])
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


def test_flashinfer_is_measured_last(measured, monkeypatch):
    flashinfer(monkeypatch, lambda compressions, rows, selector: None)
    rows, said = measured()
    assert [row["part"] for row in rows] == [*OURS, *OURS, "flashinfer", "flashinfer"]
    assert [row["candidates"] for row in rows] == [*["90"] * 3, *["50"] * 3, "90", "50"]
    assert {row["microseconds"] for row in rows} == {"1000.0"}
    assert {row["error"] for row in rows} == {""}
    assert "  2 x     90  scores           1000 us     1.000 GB  100.0 % of a copy's bandwidth" in said


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, torch.OutOfMemoryError, None])
def test_a_failure_of_flashinfer_costs_its_part_alone(measured, monkeypatch, kind):
    def fail(compressions, rows, selector):
        raise kind("nvcc was not found\nand much more")

    flashinfer(monkeypatch, fail)
    if kind is None:  # it is not installed
        monkeypatch.setitem(sys.modules, "sglang_rpc.scoring.flashinfer_lse", None)
    rows, said = measured()
    assert [row["part"] for row in rows] == [*OURS, *OURS, "flashinfer", "flashinfer"]
    assert {row["microseconds"] for row in rows[:6]} == {"1000.0"}
    reason = "ModuleNotFoundError: " if kind is None else f"{kind.__name__}: nvcc was not found"
    for row in rows[6:]:
        assert row["microseconds"] == row["copy_share"] == ""
        assert row["error"].startswith(reason)
        assert f"  2 x     {row['candidates']}  flashinfer left out: {row['error']}\n" in said


def test_a_row_is_in_the_file_as_soon_as_it_is_measured(measured, monkeypatch, tmp_path):
    def interrupted(compressions, rows, selector):
        raise KeyboardInterrupt

    flashinfer(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured()
    with (tmp_path / "kernels.csv").open(newline="") as file:
        assert [row["part"] for row in csv.DictReader(file)] == [*OURS, *OURS]


def test_what_was_measured_before_memory_ran_out_is_kept(measured, monkeypatch):
    def too_much(scene):
        for part in parts(scene):
            if part[0] == "total" and scene.compressions[0].candidates == 90:
                raise torch.OutOfMemoryError
            yield part

    flashinfer(monkeypatch, lambda compressions, rows, selector: None)
    monkeypatch.setattr(kernels, "parts", too_much)
    rows, said = measured()
    assert [row["part"] for row in rows] == ["scores", "select", "all others", *OURS, "flashinfer", "flashinfer"]
    assert "  2 x     90  all others left out: more than this GPU holds" in said
