"""What a server is asked that resends what it generated: forks of a thought, loops of thought and tool, rollouts in
chunks. Every text is token ids, and every length is forced, so that all arms are asked the same."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from eval.bench import client, load
from eval.bench.client import Sample
from eval.bench.errors import BenchError

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Tokens, and how many of each."""

    prompt: int
    thought: int  #: before the forks
    forks: int  #: of each thought
    own: int  #: of each fork, after one token that is its own
    turns: int  #: of a loop
    step: int  #: tokens of a turn's thought
    result: int  #: tokens of a tool's result
    chunk: int  #: of a rollout
    chunks: int
    at_once: int  #: thoughts, loops, or rollouts

    @property
    def widest(self) -> int:
        """Tokens that the widest of the three holds uncompressed, shared text once."""
        fork = self.at_once * (self.prompt + self.thought + self.forks * (self.own + 1))
        loop = self.at_once * (self.prompt + self.turns * (self.step + self.result))
        rollout = self.at_once * (self.prompt + self.chunk * self.chunks)
        return max(fork, loop, rollout)

    @property
    def longest(self) -> int:
        """Tokens of the longest text, which the smallest pool must hold whole."""
        loop = self.prompt + self.turns * (self.step + self.result)
        return max(self.prompt + self.thought + self.own + 1, loop, self.prompt + self.chunk * self.chunks)


class Conversation:
    """One text that grows, and what each request of it cost."""

    def __init__(self, http: aiohttp.ClientSession, sizes: Sizes, vocabulary: int, seed: str):
        self.draw, self.vocabulary, self.http = random.Random(seed), vocabulary, http
        self.text = self.given(sizes.prompt)
        self.samples: list[Sample] = []

    def given(self, tokens: int) -> list[int]:
        """Ids at random."""
        return [self.draw.randrange(self.vocabulary) for _ in range(tokens)]

    async def ask(self, tokens: int, then: list[int]) -> Sample:
        """Generate `tokens`, and append them to the text, and `then`. Raises BenchError if it goes wrong."""
        sample, output = await generate(self.http, self.text, tokens)
        self.samples.append(sample)
        self.text += [*output, *then]
        return sample


async def generate(http: aiohttp.ClientSession, text: list[int], tokens: int) -> tuple[Sample, list[int]]:
    """One streamed request, and its ids. Raises BenchError if it goes wrong."""
    request = client.body(text, tokens, 1, 0.0, 16, None)
    sample, output = Sample(time.perf_counter(), tokens), []
    async with http.post("/generate", json=request) as response:
        async for line in response.content:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                chunk = client.orjson.loads(line[6:])
                if "error" in chunk:
                    raise BenchError(f"a request of {len(text)} + {tokens} tokens failed: {chunk['error']}")
                sample.take(chunk, time.perf_counter(), streamed=True)
                output = chunk["output_ids"]
    if sample.error or not sample.finished:
        raise BenchError(f"a request of {len(text)} + {tokens} tokens failed: {sample.error or 'cut short'}")
    return sample, output


async def fork(http: aiohttp.ClientSession, sizes: Sizes, vocabulary: int, seed: str) -> list[Sample]:
    """All thoughts, then all forks at once; the samples of the forks alone."""
    thoughts = [Conversation(http, sizes, vocabulary, f"{seed}/{number}") for number in range(sizes.at_once)]
    await asyncio.gather(*(thought.ask(sizes.thought, []) for thought in thoughts))
    texts = [[*thought.text, *thought.given(1)] for thought in thoughts for _ in range(sizes.forks)]
    return [sample for sample, _ in await asyncio.gather(*(generate(http, text, sizes.own) for text in texts))]


async def loop(http: aiohttp.ClientSession, sizes: Sizes, vocabulary: int, seed: str) -> list[Sample]:
    """Agents that think, get a tool's result, and send all of it again."""

    async def one(number: int) -> list[Sample]:
        agent = Conversation(http, sizes, vocabulary, f"{seed}/{number}")
        for _ in range(sizes.turns):
            await agent.ask(sizes.step, agent.given(sizes.result))
        return agent.samples

    return [s for samples in await asyncio.gather(*map(one, range(sizes.at_once))) for s in samples]


async def rollout(http: aiohttp.ClientSession, sizes: Sizes, vocabulary: int, seed: str) -> list[Sample]:
    """Samples that are cut every few tokens, and go on with what they have."""

    async def one(number: int) -> list[Sample]:
        sample = Conversation(http, sizes, vocabulary, f"{seed}/{number}")
        for _ in range(sizes.chunks):
            await sample.ask(sizes.chunk, [])
        return sample.samples

    return [s for samples in await asyncio.gather(*map(one, range(sizes.at_once))) for s in samples]


LOADS: dict[str, Callable[..., Awaitable[list[Sample]]]] = {"fork": fork, "loop": loop, "rollout": rollout}


async def measure(url: str, name: str, sizes: Sizes, vocabulary: int, seed: str) -> Row:
    """The measured columns of one load on one server, of the forks alone where there are forks."""
    readings: list[load.Reading] = []
    async with client.session(url) as http, load.sampled(http, readings, seconds=0.02):
        samples = await LOADS[name](http, sizes, vocabulary, seed)
    began, ended = min(s.sent for s in samples), max(s.last or s.sent for s in samples)
    receipts = [s.meta.get("rpc") or {} for s in samples]
    return {
        "requests": len(samples),
        "prefilled_tokens": sum(s.meta["prompt_tokens"] - s.meta.get("cached_tokens", 0) for s in samples),
        "first_token_ms": 1000 * statistics.median((s.first or s.sent) - s.sent for s in samples),
        "last_first_token_ms": 1000 * max((s.first or s.sent) - s.sent for s in samples),
        "tok_s": sum(s.tokens for s in samples) / (ended - began),
        "wall_s": ended - began,
        "kv_peak": load.summarise(readings, began, ended, ended).used_tokens_peak,
        "reused_requests": sum(bool(r.get("reused") or r.get("continued")) for r in receipts),
        "compressions": sum(r.get("compressions", 0) for r in receipts),
        "retractions": sum(r.get("retractions", 0) for r in receipts),
    }
