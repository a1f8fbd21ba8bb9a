"""`python -m eval.accuracy` from its flags to its report."""

from __future__ import annotations

import json
import os

from eval.accuracy import mathematics
from eval.accuracy.store import read
from tests.unit.accuracy.runs import run, written


def test_the_paper_preset_and_what_a_row_keeps(serving, tmp_path, capsys):
    data = written(tmp_path / "d.jsonl", *({"problem": f"P{n}", "answer": n} for n in (4, 5)))
    server = serving(lambda message: ("2 + 2", r"It is \boxed{4}.", "stop"))
    assert run(server, tmp_path, "--task", "aime24", "--data", data, "--preset", "paper") == 0
    out = capsys.readouterr().out
    assert "2 problems, 16 samples\npass@1[avg-of-8]  0.500 +- 0.500   pass@8  0.500\n" in out
    assert {(a["temperature"], a["top_p"], a["max_tokens"]) for a in server.asked} == {(0.6, 0.95, 32768)}
    config, samples = read(tmp_path / "out.jsonl")
    assert len(config["data_sha256"]) == 64
    assert config["measure"] == "pass@1"
    assert set(config["graders"]) == {"math-verify", "latex2sympy2_extended", "sympy"}
    one = samples[0]
    assert (one["thoughts"], one["said"], one["answer"], one["grader_error"]) == (
        "2 + 2",
        r"It is \boxed{4}.",
        "4",
        None,
    )
    said = json.loads((tmp_path / "out.jsonl").read_text().split("\n")[0])["said"]
    assert said["source"] == str(data)
    assert said["samples"] == 8


def test_flags_override_the_preset(serving, tmp_path):
    data = written(tmp_path / "d.jsonl", {"problem": "P", "answer": 4})
    server = serving(lambda message: ("", "no box", "stop"))
    flags = ["--preset", "paper", "--samples", 2, "--temperature", 0.7, "--max-tokens", 9]
    assert run(server, tmp_path, "--task", "aime24", "--data", data, *flags) == 0
    assert [(a["temperature"], a["top_p"], a["max_tokens"]) for a in server.asked] == [(0.7, 0.95, 9)] * 2


def test_thoughts_without_an_end_have_no_answer(serving, tmp_path, capsys):
    data = written(tmp_path / "d.jsonl", {"problem": "P", "answer": 4})
    server = serving(lambda message: (None, r"so far \boxed{4}", "length"))
    assert run(server, tmp_path, "--task", "aime24", "--data", data) == 0
    assert "no answer 100.0%, truncated 100.0%" in capsys.readouterr().out
    (sample,) = read(tmp_path / "out.jsonl")[1]
    assert sample["answer"] is None
    assert not sample["correct"]
    assert sample["said"] == r"so far \boxed{4}"


def test_a_grader_that_fails_is_seen_and_counts_as_wrong(serving, tmp_path, capsys, monkeypatch):
    data = written(tmp_path / "d.jsonl", {"problem": "P", "answer": 4})
    monkeypatch.setattr(mathematics, "judge", hostile)
    assert run(serving(), tmp_path, "--task", "aime24", "--data", data) == 0
    assert "1 samples count as wrong because their grader failed" in capsys.readouterr().out
    (sample,) = read(tmp_path / "out.jsonl")[1]
    assert sample["grader_error"] == "the grader ended with 3"
    assert not sample["correct"]


def hostile(problem, answer):
    os._exit(3)


def test_other_data_is_another_run(serving, tmp_path, capsys):
    data = written(tmp_path / "d.jsonl", {"problem": "P", "answer": 4})
    server = serving(lambda message: ("", "no box", "stop"))
    assert run(server, tmp_path, "--task", "aime24", "--data", data) == 0
    written(data, {"problem": "P", "answer": 5})
    assert run(server, tmp_path, "--task", "aime24", "--data", data) == 1
    assert "holds samples of another run: data_sha256 was" in capsys.readouterr().err
    assert len(server.asked) == 1


def test_passing_the_samples_of_the_text_is_not_called_pass_at_1(serving, tmp_path, capsys):
    tests = [{"input": "1 2", "output": "3", "testtype": "stdin"}]
    plain = {"question_content": "Add.", "starter_code": "", "metadata": "{}", "private_test_cases": ""}
    data = written(tmp_path / "d.jsonl", {**plain, "question_id": "q", "public_test_cases": json.dumps(tests)})
    server = serving(lambda message: ("x", "```python\nprint(sum(map(int, input().split())))\n```", "stop"))
    assert run(server, tmp_path, "--task", "livecodebench", "--data", data, "--samples", 2) == 0
    out = capsys.readouterr().out
    assert "public-sample rate[avg-of-2]  1.000" in out
    assert "pass@" not in out
    config, samples = read(tmp_path / "out.jsonl")
    assert config["measure"] == "public-sample rate"
    assert samples[0]["details"] == {"passed": "1/1"}
    assert samples[0]["expected"] == {"tests": 1}


def test_ifeval_is_graded_on_the_answer(serving, tmp_path, capsys):
    asked = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    data = written(tmp_path / "d.jsonl", *({"prompt": prompt, **asked} for prompt in "AB"))
    server = serving(lambda message: (None, "one, two</think>\n" + ("yes" if message == "A" else "no, no"), "stop"))
    assert run(server, tmp_path, "--task", "ifeval", "--data", data) == 0
    out = capsys.readouterr().out
    assert "pass@1[avg-of-1]  0.500" in out
    assert "that is prompt-level strict; loose 0.500" in out
