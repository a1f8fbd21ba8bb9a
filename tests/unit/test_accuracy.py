"""eval.accuracy: what is stored, resumed and counted."""

import asyncio
import json
import math
from types import SimpleNamespace

import httpx
import openai
import pytest

from eval.accuracy import sampling, tasks
from eval.accuracy.errors import EvalError
from eval.accuracy.sampling import Sampling, collect
from eval.accuracy.statistics import loops, paired, pass_at, report, standard_error
from eval.accuracy.store import Store, read


def row(problem="a", sample=0, **others):
    plain = dict(correct=True, answer="1", finish="stop", tokens=10, looping=False, receipt=None)
    return {"problem": problem, "sample": sample, **plain, **others}


# ---- the store ----


def test_a_killed_run_goes_on_without_repeating_or_losing_a_sample(tmp_path):
    path = tmp_path / "deep" / "samples.jsonl"
    store = Store(path, {"seed": 1, "flags": ("a", "b")})
    store.add(row("a", 0))
    store.add(row("b", 0))
    store.close()
    with path.open("a") as file:  # killed in the middle of a line
        file.write('{"problem": "c", "sam')
    again = Store(path, {"seed": 1, "flags": ("a", "b")})
    assert again.done == {("a", 0), ("b", 0)}
    again.add(row("c", 0, answer="\u00e9"))
    again.close()
    config, rows = read(path)
    assert config == {"seed": 1, "flags": ["a", "b"]} and [r["problem"] for r in rows] == ["a", "b", "c"]
    assert rows[-1]["answer"] == "\u00e9"
    with pytest.raises(ValueError, match="already"):
        Store(path, {"seed": 1, "flags": ("a", "b")}).add(row("b", 0))


def test_two_runs_do_not_write_one_file(tmp_path):
    first = Store(tmp_path / "s.jsonl", {})
    with pytest.raises(EvalError, match="being written by another run"):
        Store(tmp_path / "s.jsonl", {})
    first.close()
    Store(tmp_path / "s.jsonl", {}).close()


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_model_may_say_any_character(tmp_path, odd):
    store = Store(tmp_path / "s.jsonl", {})
    store.add(row("a", 0, said=f"one{odd}two"))
    store.close()
    assert read(tmp_path / "s.jsonl")[1][0]["said"] == f"one{odd}two"


def test_a_sample_that_is_there_twice_is_seen(tmp_path):
    store = Store(tmp_path / "s.jsonl", {})
    store.add(row("a", 0))
    store.close()
    text = (tmp_path / "s.jsonl").read_text()
    (tmp_path / "s.jsonl").write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(EvalError, match="a sample is in it twice"):
        Store(tmp_path / "s.jsonl", {})


def test_a_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"other": 1}')
    with pytest.raises(EvalError, match="not a file of samples"):
        Store(path, {})
    assert path.read_text() == '{"other": 1}'


def test_samples_of_another_configuration_are_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    Store(path, {"temperature": 0.6}).close()
    with pytest.raises(EvalError, match=r"temperature was 0.6 and is 0.7 now; choose another --out"):
        Store(path, {"temperature": 0.7})
    path.write_text('["no", "samples"]\n')
    with pytest.raises(EvalError, match="not a file of samples"):
        Store(path, {})


def test_killed_before_the_first_line_was_whole(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"config": {"see')
    store = Store(path, {"seed": 2})
    store.close()
    assert read(path) == ({"seed": 2}, [])


# ---- counting ----


def test_the_standard_error_is_over_problems():
    rows = [
        row(p, s, correct=c)
        for p, marks in {"a": (1, 1), "b": (1, 0), "c": (0, 0)}.items()
        for s, c in enumerate(marks)
    ]
    found = report(rows)
    assert (found.problems, found.samples, found.k) == (3, 6, 2)
    assert found.accuracy == pytest.approx(0.5)
    assert found.error == pytest.approx(math.sqrt(0.25 / 3))  # variance of 1, 0.5, 0
    assert found.pass_at_k == pytest.approx(2 / 3)
    assert math.isnan(standard_error([0.3]))
    # 200 of 200 is not certainty: by Laplace's rule one of 202 might fail.
    assert standard_error([1.0] * 200) == pytest.approx(math.sqrt(1 / 202 * (201 / 202) / 200))


def test_pass_at_k_equals_drawing_every_way():
    import itertools

    marks = [True, False, False, True, False]
    for k in range(1, 6):
        drawn = [any(pick) for pick in itertools.combinations(marks, k)]
        assert pass_at(k, marks) == pytest.approx(sum(drawn) / len(drawn))


def test_how_samples_ended():
    receipt = {"compressions": 2, "evicted": 30, "generated": 60}
    rows = [
        row("a", finish="length", answer=None, correct=False, looping=True, tokens=100),
        row("b", receipt=receipt, tokens=60),
        row("c", receipt={**receipt, "compressions": 0, "evicted": 0}, tokens=20),
    ]
    found = report(rows)
    assert (found.truncated, found.no_answer, found.looping) == (pytest.approx(1 / 3),) * 3
    assert found.compressed == pytest.approx(1 / 3) and found.evicted == pytest.approx(0.25)
    assert (found.tokens, found.tokens_median) == (60, 60)
    assert report([row()]).compressed is None


def test_pairs_are_of_the_problems_both_have():
    mean, error, count = paired({"a": 1.0, "b": 0.5, "x": 0.0}, {"a": 0.0, "b": 0.5, "y": 1.0})
    assert (mean, count) == (0.5, 2) and error == pytest.approx(0.5)
    assert paired({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.0}) == (0.0, 0.0, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e f g h", False),
        ("x y " + "no no no no", True),
        ("start " + "B4 4 " * 4, True),
        ("B4 4 " * 3 + "B4", False),
        ("1 2 3 4 " * 4, True),
        ("1 2 3 4 " * 4 + "5", False),
        ("", False),
    ],
)
def test_loops_are_ends_that_repeat(text, expected):
    assert loops(text.split()) is expected


# ---- sampling ----


class Server:
    """An OpenAI client whose answers are given: a text, or an exception."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    async def create(self, **arguments):
        self.asked.append(arguments)
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        message = {"content": answer, "reasoning_content": "A0 3"}
        choice = {"message": message, "finish_reason": "stop", "meta_info": {"rpc": {"compressions": 1}}}
        return SimpleNamespace(
            choices=[SimpleNamespace(model_dump=lambda: choice)], usage=SimpleNamespace(completion_tokens=9)
        )


def status(code: int) -> openai.APIStatusError:
    response = httpx.Response(code, request=httpx.Request("POST", "http://server"))
    return openai.APIStatusError(f"status {code}", response=response, body=None)


PLAIN = Sampling("m", 0.6, 0.95, 100, seed=10, rpc={"ratio": 8})


def collected(server, samples=2, **others):
    task, rows = tasks.reasoner("near", 3, seed=0), []
    wanted = [(problem, sample) for problem in task.problems for sample in range(samples)]

    async def judging(problem, answer):
        return task.judge(problem, answer)

    asyncio.run(collect(server, task, judging, PLAIN, wanted, 2, rows.append, **others))
    return task, rows


def test_every_sample_is_asked_for_once_and_judged():
    task = tasks.reasoner("near", 3, seed=0)
    server = Server(task.problems[0].expected + " <eos>")
    _, rows = collected(server)
    assert sorted((r["problem"], r["sample"]) for r in rows) == [(p.id, s) for p in task.problems for s in range(2)]
    assert [r["correct"] for r in rows if r["problem"] == task.problems[0].id] == [True, True]
    assert len({a["seed"] for a in server.asked}) == 6  # luck of its own for each sample
    assert server.asked[0]["extra_body"]["custom_params"] == {"rpc": {"ratio": 8}}
    assert rows[0]["receipt"] == {"compressions": 1} and rows[0]["thoughts"] == "A0 3"


def test_no_answer_is_none():
    _, rows = collected(Server(""))
    assert all(r["answer"] is None and not r["correct"] for r in rows)


@pytest.fixture
def no_waiting(monkeypatch):
    async def at_once(_seconds):
        return None

    monkeypatch.setattr(sampling.asyncio, "sleep", at_once)


def test_a_server_that_stumbles_is_asked_again(no_waiting):
    lost = openai.APIConnectionError(request=httpx.Request("POST", "http://server"))
    server = Server(status(503), lost, "1 2 3")
    _, rows = collected(server)
    assert len(rows) == 6 and len(server.asked) == 8


@pytest.mark.parametrize("answer", [status(400), status(503)], ids=["refused", "gone"])
def test_a_server_that_refuses_or_is_gone_ends_the_run_with_a_sentence(answer, no_waiting):
    with pytest.raises(ExceptionGroup) as caught:
        collected(Server(answer))
    assert caught.group_contains(EvalError, match="refused problem near-0-0|failed 20 times in a row")


def test_an_aborted_sample_is_asked_for_again(no_waiting):
    class Aborting(Server):
        async def create(self, **arguments):
            response = await super().create(**arguments)
            if len(self.asked) == 1:
                choice = {**response.choices[0].model_dump(), "finish_reason": "abort"}
                response.choices[0].model_dump = lambda: choice
            return response

    server = Aborting("1 2 3")
    _, rows = collected(server)
    assert len(rows) == 6 and len(server.asked) == 7 and {r["finish"] for r in rows} == {"stop"}


def test_options_that_a_server_ignores_are_noticed():
    class WithoutReceipts(Server):
        async def create(self, **arguments):
            response = await super().create(**arguments)
            choice = {**response.choices[0].model_dump(), "meta_info": {}}
            response.choices[0].model_dump = lambda: choice
            return response

    with pytest.raises(ExceptionGroup) as caught:
        collected(WithoutReceipts("1 2 3"))
    assert caught.group_contains(EvalError, match="the server runs without RPC")


def test_an_answer_behind_thoughts_that_no_parser_took_away():
    task, rows = collected(Server("A0 3 n31 a0 6 </think> 7 7 6 <eos>"))
    assert {row["answer"] for row in rows} == {"7 7 6"} and {row["said"][:4] for row in rows} == {"A0 3"}
    assert task.answer(" <eos>") is None


def test_an_unknown_level_is_refused():
    with pytest.raises(EvalError, match="near, far, many, late, got 'easy'"):
        tasks.reasoner("easy", 1, 0)


def test_a_row_is_one_line_of_json(tmp_path):
    _, rows = collected(Server("a\nb"))
    store = Store(tmp_path / "s.jsonl", {})
    store.add(rows[0])
    assert [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()][1]["said"] == "a\nb"
