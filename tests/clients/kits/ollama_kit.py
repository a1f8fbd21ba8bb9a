"""The Ollama client: chat and generate, whole and streamed, and what it lists."""

from __future__ import annotations

from ollama import Client

from tests.clients.target import TOKENS, Target, expect

MESSAGES = [{"role": "user", "content": "Tell me a long story about a dragon who learns to cook."}]
OPTIONS = {"num_predict": TOKENS, "temperature": 0}


def _client(target: Target) -> Client:
    return Client(host=target.url, timeout=600)


def check_list_and_show(target: Target) -> None:
    client = _client(target)
    name = client.list().models[0].model
    expect(bool(client.show(name).modelinfo), name)


def check_chat(target: Target) -> None:
    answer = _client(target).chat(model="m", messages=MESSAGES, options=OPTIONS)
    expect(answer.eval_count == TOKENS and len(answer.message.content) > 100, answer.model_dump())


def check_chat_streamed(target: Target) -> None:
    chunks = list(_client(target).chat(model="m", messages=MESSAGES, options=OPTIONS, stream=True))
    expect(chunks[-1].done and len("".join(chunk.message.content for chunk in chunks)) > 100)


def check_generate(target: Target) -> None:
    answer = _client(target).generate(model="m", prompt="Once upon a time", options=OPTIONS)
    expect(answer.eval_count == TOKENS, answer.model_dump())


def check_options_of_the_request(target: Target) -> None:
    options = {**OPTIONS, "custom_params": {"rpc": {"interval": 8, "window": 4}}}
    answer = _client(target).generate(model="m", prompt="Once upon a time", options=options)
    expect(answer.eval_count == TOKENS, answer.model_dump())


def check_generate_streamed(target: Target) -> None:
    chunks = list(_client(target).generate(model="m", prompt="Once upon a time", options=OPTIONS, stream=True))
    expect(chunks[-1].done and len("".join(chunk.response for chunk in chunks)) > 100)
