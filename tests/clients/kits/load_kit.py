"""Load: two thousand requests at once, and a hundred clients that hang up."""

from __future__ import annotations

import asyncio

import httpx

from tests.clients.target import Target, expect

REQUESTS, TOKENS = 2000, 64
HANGING_UP = 100
PROMPT = "<bos> <K4> <N56> <last> A0 +3 A1 +7 A2 +1 A3 +5 <think>"


def _body(tokens: int, number: int, **more) -> dict:
    # A seed and a temperature, so that the requests go different ways.
    sampling = {"temperature": 1, "sampling_seed": number, "max_new_tokens": tokens, "ignore_eos": True}
    return {"text": PROMPT, "sampling_params": sampling, **more}


def _client(target: Target) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=target.url, timeout=httpx.Timeout(1800), limits=limits)


def check_two_thousand_at_once(target: Target) -> None:
    async def ask() -> list[httpx.Response]:
        async with _client(target) as client:
            return await asyncio.gather(*(client.post("/generate", json=_body(TOKENS, n)) for n in range(REQUESTS)))

    answers = asyncio.run(ask())
    wrong = [answer.text[:200] for answer in answers if answer.status_code != 200]
    expect(not wrong, wrong[:5])
    expect({answer.json()["meta_info"]["completion_tokens"] for answer in answers} == {TOKENS})
    target.flush()


def check_a_hundred_hang_up(target: Target) -> None:
    async def hang_up(client: httpx.AsyncClient, number: int) -> int:
        chunks = 0
        async with client.stream("POST", "/generate", json=_body(3000, number, stream=True)) as answer:
            async for line in answer.aiter_lines():
                chunks += line.startswith("data:")
                if chunks > number:  # each after another number of chunks, before and after compressions
                    break
        return chunks

    async def all_hang_up() -> list[int]:
        async with _client(target) as client:
            return await asyncio.gather(*(hang_up(client, number) for number in range(HANGING_UP)))

    expect(asyncio.run(all_hang_up()) == [number + 1 for number in range(HANGING_UP)])
    target.flush(30)  # 3000 tokens of a hundred requests would take longer: they were aborted
    expect(target.generate(PROMPT, TOKENS)["meta_info"]["completion_tokens"] == TOKENS)
