"""litellm, as an OpenAI-compatible and as an Anthropic provider."""

from __future__ import annotations

import asyncio

import litellm

from tests.clients.target import TOKENS, Target, expect

MESSAGES = [{"role": "user", "content": "Tell me a long story about a dragon who learns to cook."}]


def _asked(target: Target) -> dict:
    return {
        "model": "openai/m",
        "api_base": target.url + "/v1",
        "api_key": "none",
        "messages": MESSAGES,
        "max_tokens": TOKENS,
        "timeout": 600,
    }


def check_completion(target: Target) -> None:
    answer = litellm.completion(**_asked(target))
    expect(answer.usage.completion_tokens == TOKENS, answer.model_dump())


def check_completion_streamed(target: Target) -> None:
    parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**_asked(target), stream=True)]
    expect(len("".join(parts)) > 100, parts)


def check_eight_at_once(target: Target) -> None:
    async def ask() -> list:
        return await asyncio.gather(*(litellm.acompletion(**_asked(target)) for _ in range(8)))

    expect(all(answer.choices[0].message.content for answer in asyncio.run(ask())))


def check_as_anthropic(target: Target) -> None:
    answer = litellm.completion(**{**_asked(target), "model": "anthropic/m", "api_base": target.url})
    expect(answer.usage.completion_tokens == TOKENS, answer.model_dump())
