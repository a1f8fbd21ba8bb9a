"""One group's request to /generate, and what came of each of its samples.

SGLang's own `sglang.bench_serving` was looked at first. Its request function takes the first token and the gaps between
tokens from chunks that hold *text*, of which a server of token ids (`--skip-tokenizer-init`) sends none; it keeps no
`meta_info`, where retractions, cached tokens and receipts are; it does not tell the samples of n > 1 apart, nor does it
check that a forced length was reached. What is left, Poisson arrivals and percentiles, is a line each.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

#: A line of a stream holds all token ids so far, so it grows with the output: this many bytes are far from any of them.
READ_BUFFER = 2**24


@dataclass
class Sample:
    """One generated sequence. Times are seconds of time.perf_counter()."""

    sent: float
    wanted: int  #: tokens asked for
    first: float | None = None  #: arrival of the first chunk that had a token; None when nothing was streamed
    last: float | None = None  #: arrival of the latest chunk
    tokens: int = 0
    chunks: list[tuple[float, int]] = field(default_factory=list)  #: (arrival, new tokens), when streamed
    finished: bool = False
    error: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)  #: the last meta_info

    @property
    def wrong_length(self) -> bool:
        return self.finished and self.tokens != self.wanted

    def take(self, answer: dict[str, Any], now: float, streamed: bool) -> int:
        """A chunk, or the whole answer, of this sample; returns how many tokens are new."""
        meta = answer["meta_info"]
        tokens = meta["completion_tokens"]
        new = tokens - self.tokens
        if streamed and new > 0:
            if self.first is None:
                self.first = now
            self.chunks.append((now, new))
        self.tokens, self.last, self.meta = tokens, now, meta
        reason = meta.get("finish_reason")
        if reason is not None:
            self.finished = True
            if reason.get("type") == "abort":
                self.error = f"aborted: {reason.get('message')}"
            elif self.wrong_length:
                self.error = f"{self.tokens} tokens instead of {self.wanted}, finished by {reason}"
        return new


def body(
    prompt: list[int],
    tokens: int,
    n: int,
    temperature: float,
    stream_interval: int,
    custom_params: dict | None = None,
    *,
    known_length: bool = True,
) -> dict[str, Any]:
    """The JSON of /generate. `stream_interval` 0: not streamed. Without a known length the server must expect the
    request to end any moment; it does not, on a model without an end token."""
    sampling: dict[str, Any] = {
        "max_new_tokens": tokens,
        "ignore_eos": known_length,
        "temperature": temperature,
        "n": n,
    }
    if custom_params is not None:
        sampling["custom_params"] = custom_params
    if stream_interval:
        sampling["stream_interval"] = stream_interval
    return {"input_ids": prompt, "sampling_params": sampling, "stream": bool(stream_interval)}


def session(url: str) -> aiohttp.ClientSession:
    """For any number of requests at once, of any duration: whoever uses it sets the limits."""
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=READ_BUFFER,
    )


async def send(http: aiohttp.ClientSession, request: dict[str, Any], progress: Any = None) -> list[Sample]:
    """The samples of one request; what went wrong is in their `error`, nothing but a cancellation is raised.

    `progress` is called with numbers of new tokens as they arrive.
    """
    sampling = request["sampling_params"]
    now = time.perf_counter()
    samples = [Sample(now, sampling["max_new_tokens"]) for _ in range(sampling["n"])]
    try:
        async with http.post("/generate", json=request) as response:
            if response.status != 200:
                _fail(samples, f"HTTP {response.status}: {(await response.text())[:300]}")
            elif request["stream"]:
                await _stream(response, samples, progress)
            else:
                answers = orjson.loads(await response.read())
                _take_all(answers if isinstance(answers, list) else [answers], samples, progress)
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        _fail(samples, f"{type(error).__name__}: {error}")
    _fail([sample for sample in samples if not sample.finished], "the answer ended before the sample did")
    return samples


async def _stream(response: aiohttp.ClientResponse, samples: list[Sample], progress: Any) -> None:
    async for line in response.content:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        now = time.perf_counter()
        chunk = orjson.loads(line[6:])
        if "error" in chunk:
            _fail(samples, str(chunk["error"])[:300])
            return
        new = samples[chunk.get("index", 0)].take(chunk, now, streamed=True)
        if progress is not None:
            progress(new)


def _take_all(answers: list[dict[str, Any]], samples: list[Sample], progress: Any) -> None:
    now = time.perf_counter()
    for sample, answer in zip(samples, answers, strict=True):
        new = sample.take(answer, now, streamed=False)
        if progress is not None:
            progress(new)


def _fail(samples: list[Sample], why: str) -> None:
    for sample in samples:
        if sample.error is None:
            sample.error = why
