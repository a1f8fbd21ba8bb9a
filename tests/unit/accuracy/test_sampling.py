"""Samples drawn from a server, and answers that are errors."""

import asyncio
import json
from types import SimpleNamespace

import httpx
import openai
import pytest

from eval.accuracy import sampling, tasks
from eval.accuracy.errors import EvalError
from eval.accuracy.sampling import Sampling, collect
from eval.accuracy.store import Store


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
    task, rows = tasks.find("reasoner:near", 3, seed=0), []
    wanted = [(problem, sample) for problem in task.problems for sample in range(samples)]

    async def judging(problem, answer):
        return task.judge(problem, answer)

    asyncio.run(collect(server, task, judging, PLAIN, wanted, 2, rows.append, **others))
    return task, rows


def test_every_sample_is_asked_for_once_and_judged():
    task = tasks.find("reasoner:near", 3, seed=0)
    server = Server(task.problems[0].expected + " <eos>")
    _, rows = collected(server)
    assert sorted((r["problem"], r["sample"]) for r in rows) == [(p.id, s) for p in task.problems for s in range(2)]
    assert [r["correct"] for r in rows if r["problem"] == task.problems[0].id] == [True, True]
    assert len({a["seed"] for a in server.asked}) == 6  # luck of its own for each sample
    assert server.asked[0]["extra_body"]["custom_params"] == {"rpc": {"ratio": 8}}
    assert rows[0]["receipt"] == {"compressions": 1}
    assert rows[0]["thoughts"] == "A0 3"


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
    assert len(rows) == 6
    assert len(server.asked) == 8


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
    assert len(rows) == 6
    assert len(server.asked) == 7
    assert {r["finish"] for r in rows} == {"stop"}


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


def test_an_answer_after_thoughts_that_no_parser_took_away():
    task, rows = collected(Server("A0 3 n31 a0 6 </think> 7 7 6 <eos>"))
    assert {row["answer"] for row in rows} == {"7 7 6"}
    assert {row["said"][:4] for row in rows} == {"A0 3"}
    assert task.answer(" <eos>") is None


def test_an_unknown_level_is_refused():
    with pytest.raises(EvalError, match="near, far, many, got 'easy'"):
        tasks.find("reasoner:easy", 1, 0)


def test_a_row_is_one_line_of_json(tmp_path):
    _, rows = collected(Server("a\nb"))
    store = Store(tmp_path / "s.jsonl", {})
    store.add(rows[0])
    assert [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()][1]["said"] == "a\nb"
