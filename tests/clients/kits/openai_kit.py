"""The OpenAI client: chat, completions and responses, whole and streamed."""

from __future__ import annotations

from openai import OpenAI

from tests.clients.target import TOKENS, Target, expect

MESSAGES = [{"role": "user", "content": "Tell me a long story about a dragon who learns to cook."}]


def _client(target: Target) -> OpenAI:
    return OpenAI(base_url=target.url + "/v1", api_key="none", timeout=600, max_retries=0)


def check_models(target: Target) -> None:
    expect(len(_client(target).models.list().data) == 1)


def check_chat(target: Target) -> None:
    answer = _client(target).chat.completions.create(model="m", messages=MESSAGES, max_tokens=TOKENS)
    expect(len(answer.choices[0].message.content) > 100, answer.model_dump())
    expect(answer.usage.completion_tokens == TOKENS, answer.usage.model_dump())


def check_chat_streamed_is_the_same(target: Target) -> None:
    asked = {"model": "m", "messages": MESSAGES, "max_tokens": TOKENS, "temperature": 0}
    whole = _client(target).chat.completions.create(**asked).choices[0].message.content
    chunks = _client(target).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    expect("".join(parts) == whole, [whole, "".join(parts)])


def check_four_samples(target: Target) -> None:
    answer = _client(target).chat.completions.create(model="m", messages=MESSAGES, max_tokens=TOKENS, n=4)
    expect(len({choice.message.content for choice in answer.choices}) == 4, answer.model_dump())


def check_log_probabilities(target: Target) -> None:
    answer = _client(target).chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=TOKENS, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    expect(len(tokens) == TOKENS and all(len(token.top_logprobs) == 3 for token in tokens))


def check_json_schema(target: Target) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
    answer = _client(target).chat.completions.create(
        model="m",
        messages=MESSAGES,
        max_tokens=TOKENS,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
    )
    expect(answer.choices[0].message.content.lstrip().startswith("{"), answer.model_dump())


def check_completion(target: Target) -> None:
    answer = _client(target).completions.create(model="m", prompt=["Once upon a time", "A dragon"], max_tokens=TOKENS)
    expect([choice.index for choice in answer.choices] == [0, 1] and answer.usage.completion_tokens > TOKENS)


def check_response(target: Target) -> None:
    answer = _client(target).responses.create(model="m", input="Tell me a long story.", max_output_tokens=TOKENS)
    expect(len(answer.output_text) > 100, answer.model_dump())


def check_response_streamed(target: Target) -> None:
    events = _client(target).responses.create(
        model="m", input="Tell me a long story.", max_output_tokens=TOKENS, stream=True
    )
    kinds = [event.type for event in events]
    expect("response.output_text.delta" in kinds and kinds[-1] in ("response.completed", "response.incomplete"), kinds)


def check_response_goes_on_from_another(target: Target) -> None:
    client = _client(target)
    first = client.responses.create(model="m", input="My name is Ada.", max_output_tokens=TOKENS)
    second = client.responses.create(
        model="m", input="What is my name?", previous_response_id=first.id, max_output_tokens=TOKENS
    )
    expect(second.usage.input_tokens > first.usage.input_tokens, second.model_dump())
