"""instructor: objects out of a model, by JSON schema."""

from __future__ import annotations

from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

from tests.clients.target import Target, expect

MESSAGES = [{"role": "user", "content": "Ada is 36 years old and likes cats. Fill in the form."}]


class Person(BaseModel):
    age: int
    animal: Literal["cat", "dog"]


def _client(target: Target) -> instructor.Instructor:
    openai = OpenAI(base_url=target.url + "/v1", api_key="none", timeout=600, max_retries=0)
    return instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA)


def check_an_object(target: Target) -> None:
    person = _client(target).chat.completions.create(
        model="m", messages=MESSAGES, response_model=Person, temperature=0, max_tokens=200, max_retries=0
    )
    expect(isinstance(person, Person))


def check_an_object_with_options(target: Target) -> None:
    person = _client(target).chat.completions.create(
        model="m",
        messages=MESSAGES,
        response_model=Person,
        temperature=0,
        max_tokens=200,
        max_retries=0,
        extra_body={"custom_params": {"rpc": {"interval": 8, "window": 4}}},
    )
    expect(isinstance(person, Person))


def check_an_object_as_it_grows(target: Target) -> None:
    parts = _client(target).chat.completions.create_partial(
        model="m", messages=MESSAGES, response_model=Person, temperature=0, max_tokens=200, max_retries=0
    )
    expect(list(parts)[-1].age is not None)
