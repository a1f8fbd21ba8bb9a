"""The Anthropic client: messages, whole and streamed, and counting tokens."""

from __future__ import annotations

from anthropic import Anthropic, BadRequestError

from tests.clients.target import TOKENS, Target, expect

MESSAGES = [{"role": "user", "content": "Tell me a long story about a dragon who learns to cook."}]


def _client(target: Target) -> Anthropic:
    return Anthropic(base_url=target.url, api_key="none", timeout=600, max_retries=0)


def check_message(target: Target) -> None:
    answer = _client(target).messages.create(model="m", max_tokens=TOKENS, messages=MESSAGES, system="Be brief.")
    expect(answer.stop_reason == "max_tokens" and len(answer.content[0].text) > 100, answer.model_dump())


def check_message_with_extra_body(target: Target) -> None:
    options = {"custom_params": {"rpc": {"interval": 8, "window": 4}}}
    answer = _client(target).messages.create(model="m", max_tokens=TOKENS, messages=MESSAGES, extra_body=options)
    expect(answer.usage.output_tokens == TOKENS, answer.model_dump())


def check_message_streamed(target: Target) -> None:
    with _client(target).messages.stream(model="m", max_tokens=TOKENS, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    expect(final.content[0].text == text and final.usage.output_tokens == TOKENS, final.model_dump())


def check_several_turns(target: Target) -> None:
    turns = [*MESSAGES, {"role": "assistant", "content": "Once there was a dragon."}, MESSAGES[0]]
    answer = _client(target).messages.create(model="m", max_tokens=TOKENS, messages=turns)
    expect(answer.role == "assistant" and bool(answer.content), answer.model_dump())


def check_tokens_are_counted(target: Target) -> None:
    expect(_client(target).messages.count_tokens(model="m", messages=MESSAGES).input_tokens > 10)


def check_an_empty_conversation_is_refused(target: Target) -> None:
    try:
        answer = _client(target).messages.create(model="m", max_tokens=TOKENS, messages=[])
    except BadRequestError:
        return
    raise AssertionError(answer.model_dump_json())
