"""RPC options through the endpoints that have no place for them in their own models: Responses, Anthropic, Ollama."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval.reasoner import ledger
from eval.reasoner.words import problems
from tests.engine.servers import server

REASONER = Path(__file__).resolve().parent.parent.parent / "eval" / "reasoner" / "model"
MESSAGE = problems(ledger, ledger.LADDER["near"], 1, seed=0)[0].message(ledger.WORDS)
MESSAGES = [{"role": "user", "content": MESSAGE}]
TOKENS = 72
OPTIONS = {"interval": 16, "window": 8}  # three compressions in TOKENS; the server's own interval allows none
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Endpoint:
    """How a client says the same thing here: a greedy request of TOKENS tokens, options, and the text of an answer."""

    path: str
    body: dict[str, Any]
    text: Callable[[dict[str, Any]], str]
    in_options: bool = False  #: custom_params stand in Ollama's `options`

    def request(self, custom_params: Any = None, **more: Any) -> dict[str, Any]:
        body = {"stream": False, **self.body, **more}
        if custom_params is None:
            return body
        if self.in_options:
            return {**body, "options": {**body["options"], "custom_params": custom_params}}
        return {**body, "custom_params": custom_params}


OLLAMA = {"model": "m", "options": {"temperature": 0, "num_predict": TOKENS}}
OLLAMA_CHAT = {**OLLAMA, "messages": MESSAGES}
OLLAMA_GENERATE = {**OLLAMA, "prompt": f"<bos> {MESSAGE} <think>"}
ENDPOINTS = {
    "responses": Endpoint(
        "/v1/responses",
        # SGLang keeps two of these tokens back.
        {"model": "m", "input": MESSAGE, "temperature": 0, "max_output_tokens": TOKENS + 2},
        lambda answer: answer["output"][0]["content"][0]["text"],
    ),
    "messages": Endpoint(
        "/v1/messages",
        {"model": "m", "messages": MESSAGES, "temperature": 0, "max_tokens": TOKENS},
        lambda answer: answer["content"][0]["text"],
    ),
    "ollama chat": Endpoint("/api/chat", OLLAMA_CHAT, lambda answer: answer["message"]["content"], in_options=True),
    "ollama generate": Endpoint("/api/generate", OLLAMA_GENERATE, lambda answer: answer["response"], in_options=True),
    "ollama chat, top level": Endpoint("/api/chat", OLLAMA_CHAT, lambda answer: answer["message"]["content"]),
}
endpoints = pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    flags = "--served-model-name m --dtype float32 --max-total-tokens 4096 --rpc-scope all --enable-response-store"
    with server(tmp_path_factory.mktemp("server"), "--model-path", str(REASONER), *flags.split()) as started:
        yield started


@pytest.fixture(scope="module")
def plain(running) -> str:
    """The text without RPC options, from the endpoint that SGLang gives custom_params to."""
    return chat(running)["message"]["content"]


@pytest.fixture(scope="module")
def compressed(running) -> dict[str, Any]:
    """The same with OPTIONS: text and receipt."""
    choice = chat(running, custom_params={"rpc": OPTIONS}, return_meta_info=True)
    return {"text": choice["message"]["content"], "receipt": choice["meta_info"]["rpc"]}


def chat(running, **more) -> dict[str, Any]:
    body = {"model": "m", "messages": MESSAGES, "temperature": 0, "max_tokens": TOKENS, **more}
    status, answer = running.call(CHAT, body)
    assert status == 200, answer
    return answer["choices"][0]


def compressions(running) -> int:
    return running.call("/server_info")[1]["internal_states"][0]["rpc"]["compressions"]


def streamed(running, path: str, body: dict[str, Any]) -> list[str]:
    request = urllib.request.Request(
        running.url + path, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return response.read().decode().splitlines()


def test_the_options_change_what_is_generated(plain, compressed):
    """Else the tests below would compare nothing."""
    assert compressed["receipt"]["compressions"] == 3
    assert compressed["receipt"]["interval"] == OPTIONS["interval"]
    assert compressed["text"] != plain


@endpoints
def test_options_are_honoured_as_in_a_chat(running, compressed, endpoint):
    before = compressions(running)
    status, answer = running.call(endpoint.path, endpoint.request({"rpc": OPTIONS}))
    assert status == 200, answer
    assert endpoint.text(answer) == compressed["text"]
    assert compressions(running) == before + 3


@endpoints
def test_streamed_they_are_honoured_too(running, endpoint):
    before = compressions(running)
    streamed(running, endpoint.path, endpoint.request({"rpc": OPTIONS}, stream=True))
    assert compressions(running) == before + 3


@endpoints
@pytest.mark.parametrize("custom_params", [None, {"other": 1}, 5, {"rpc": {"enabled": False}}], ids=json.dumps)
def test_without_options_nothing_is_changed(running, plain, endpoint, custom_params):
    before = compressions(running)
    status, answer = running.call(endpoint.path, endpoint.request(custom_params))
    assert status == 200, answer
    assert endpoint.text(answer) == plain
    assert compressions(running) == before
    if not isinstance(custom_params, dict) or "rpc" not in custom_params:
        assert '"rpc"' not in json.dumps(answer)


@endpoints
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("rpc", "sentence"),
    [
        ({"ratio": 1}, "custom_params.rpc.ratio must be a number above 1"),
        ({"intervall": 64}, "custom_params.rpc has no field 'intervall'"),
        ("on", "custom_params.rpc must be an object"),
        (None, "custom_params.rpc must be an object"),
    ],
)
def test_malformed_options_are_400_with_our_sentence(running, endpoint, stream, rpc, sentence):
    status, answer = running.call(endpoint.path, endpoint.request({"rpc": rpc}, stream=stream))
    assert status == 400, answer
    error = answer.get("error", answer)
    assert error["message"].startswith(sentence)
    assert "\n" not in error["message"]


@endpoints
def test_what_only_the_scheduler_can_refuse_is_400_too(running, endpoint):
    status, answer = running.call(endpoint.path, endpoint.request({"rpc": {"scope": "think"}}))
    assert status == 400, answer
    assert "needs think tokens, and this server knows none" in json.dumps(answer)


def test_a_response_carries_its_receipt_in_its_metadata(running, compressed):
    body = ENDPOINTS["responses"].request({"rpc": OPTIONS}, metadata={"mine": "kept"})
    metadata = running.call("/v1/responses", body)[1]["metadata"]
    assert metadata["mine"] == "kept"
    assert json.loads(metadata["rpc"]) == compressed["receipt"]


def test_a_streamed_response_carries_it_at_its_end_alone(running, compressed):
    lines = streamed(running, "/v1/responses", ENDPOINTS["responses"].request({"rpc": OPTIONS}, stream=True))
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    receipts = {event["type"]: event["response"]["metadata"] for event in events if "response" in event}
    assert receipts.pop("response.incomplete")["rpc"] == json.dumps(compressed["receipt"])
    assert receipts
    assert all(metadata == {} for metadata in receipts.values())


def test_a_response_made_in_the_background_carries_it_once_it_is_there(running, compressed):
    body = ENDPOINTS["responses"].request({"rpc": OPTIONS}, background=True)
    answer = running.call("/v1/responses", body)[1]
    assert answer["status"] == "queued"
    assert answer["metadata"] == {}
    for _ in range(100):
        answer = running.call(f"/v1/responses/{answer['id']}")[1]
        if answer["status"] not in ("queued", "in_progress"):
            break
        time.sleep(0.1)
    assert json.loads(answer["metadata"]["rpc"]) == compressed["receipt"]


ALIAS = {"chat_template_kwargs": {"rpc": OPTIONS}}
BOTH = {**ALIAS, "custom_params": {"rpc": OPTIONS}}


@pytest.mark.parametrize("given", [ALIAS, BOTH], ids=["alone", "with the same custom_params"])
def test_a_chat_and_a_response_take_the_alias(running, compressed, given):
    choice = chat(running, return_meta_info=True, **given)
    assert choice["message"]["content"] == compressed["text"]
    assert choice["meta_info"]["rpc"] == compressed["receipt"]
    answer = running.call("/v1/responses", {**ENDPOINTS["responses"].body, **given})[1]
    assert ENDPOINTS["responses"].text(answer) == compressed["text"]
    assert json.loads(answer["metadata"]["rpc"]) == compressed["receipt"]


def test_floats_that_are_whole_count_as_integers(running, compressed):
    floats = {name: float(value) for name, value in OPTIONS.items()}
    choice = chat(running, custom_params={"rpc": floats}, return_meta_info=True)
    assert choice["message"]["content"] == compressed["text"]
    assert choice["meta_info"]["rpc"] == compressed["receipt"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {**ALIAS, "custom_params": {"rpc": {}}},
            "custom_params.rpc and chat_template_kwargs.rpc are one and the same",
        ),
        ({"chat_template_kwargs": {"rpc": {"ratio": 1}}}, "custom_params.rpc.ratio must be a number above 1"),
        ({"chat_template_kwargs": {"rpc": {"interval": 16.5}}}, "custom_params.rpc.interval must be an integer"),
        ({"chat_template_kwargs": {"rpc": "on"}}, "custom_params.rpc must be an object"),
    ],
)
def test_a_wrong_alias_is_400_with_our_sentence(running, path, stream, given, sentence):
    body = {**ENDPOINTS["responses"].body} if path != CHAT else {"model": "m", "messages": MESSAGES}
    status, answer = running.call(path, {**body, **given, "stream": stream})
    assert status == 400, answer
    assert answer.get("error", answer)["message"].startswith(sentence)


def test_nothing_is_left(running):
    assert running.alive()
    assert running.call("/server_info")[1]["internal_states"][0]["rpc"]["query_slots_in_use"] == 0
