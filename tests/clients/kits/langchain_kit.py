"""langchain's OpenAI chat model: calls, streams, batches, and structured output."""

from __future__ import annotations

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.clients.target import TOKENS, Target, expect

QUESTION = "Tell me a long story about a dragon who learns to cook."


class Person(BaseModel):
    age: int
    likes_cats: bool


def _model(target: Target, **more) -> ChatOpenAI:
    return ChatOpenAI(
        model="m", base_url=target.url + "/v1", api_key="none", max_tokens=TOKENS, timeout=600, max_retries=0, **more
    )


def check_invoke(target: Target) -> None:
    answer = _model(target).invoke(QUESTION)
    expect(len(answer.content) > 100 and answer.usage_metadata["output_tokens"] == TOKENS, answer.content)


def check_options_of_the_request(target: Target) -> None:
    options = {"custom_params": {"rpc": {"interval": 8, "window": 4}}}
    expect(len(_model(target, extra_body=options).invoke(QUESTION).content) > 100)


def check_stream(target: Target) -> None:
    expect(len("".join(str(chunk.content) for chunk in _model(target).stream(QUESTION))) > 100)


def check_batch(target: Target) -> None:
    expect(all(len(answer.content) > 100 for answer in _model(target).batch([QUESTION] * 4)))


def check_structured_output(target: Target) -> None:
    model = _model(target, temperature=0).with_structured_output(Person, method="json_schema")
    expect(isinstance(model.invoke("Ada is 36 years old and likes cats."), Person))
