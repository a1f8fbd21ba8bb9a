"""Samples from a server through the OpenAI API."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from eval.accuracy.errors import EvalError
from eval.accuracy.statistics import loops
from eval.accuracy.tasks import Task
from eval.accuracy.verdict import Problem, Verdict, answer_part

#: Failures in a row after which the server is taken to be gone.
PATIENCE = 20
Judging = Callable[[Problem, str], Awaitable[Verdict]]


@dataclass(frozen=True)
class Sampling:
    model: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    rpc: dict[str, Any] | None  #: custom_params.rpc of every request; None: the server's settings

    def arguments(self, problem: Problem, sample: int) -> dict[str, Any]:
        """Of `chat.completions.create`. SGLang heeds the seed under --enable-deterministic-inference only."""
        extra: dict[str, Any] = {"return_meta_info": True}
        if self.rpc is not None:
            extra["custom_params"] = {"rpc": self.rpc}
        return dict(
            model=self.model,
            messages=[{"role": "user", "content": problem.message}],
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            # Of its own for each sample: a server that heeds seeds would else give all problems the same luck.
            seed=zlib.crc32(f"{self.seed} {problem.id} {sample}".encode()) & 0x7FFFFFFF,
            extra_body=extra,
        )


async def collect(
    client: openai.AsyncOpenAI,
    task: Task,
    judging: Judging,
    sampling: Sampling,
    wanted: Sequence[tuple[Problem, int]],
    concurrency: int,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Ask for every (problem, sample) of `wanted`, and `keep` each row as it comes.

    Raises EvalError when the server refuses a request, or fails PATIENCE times in a row: what is kept stays kept.
    """
    queue = iter(wanted)
    failures = 0

    async def worker() -> None:
        nonlocal failures
        for problem, sample in queue:
            while True:
                try:
                    row = await ask(client, task, judging, sampling, problem, sample)
                except openai.APIStatusError as error:
                    if error.status_code < 500 and error.status_code != 429:
                        raise EvalError(f"the server refused problem {problem.id}: {error.message}") from error
                    failed = error.message
                except openai.APIError as error:  # no answer, or none that can be read
                    failed = str(error.__cause__ or error)
                else:
                    if row["finish"] in ("stop", "length"):
                        break
                    failed = f"problem {problem.id} ended with {row['finish']!r}"
                failures += 1
                if failures >= PATIENCE:
                    raise EvalError(f"the server failed {failures} times in a row, last: {failed}")
                await asyncio.sleep(min(30.0, 2.0**failures / 10))
            failures = 0
            keep(row)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())


async def ask(
    client: openai.AsyncOpenAI, task: Task, judging: Judging, sampling: Sampling, problem: Problem, sample: int
) -> dict[str, Any]:
    """One row: what was said, how it ended, what the receipt says, and whether it is right."""
    began = time.monotonic()
    response = await client.chat.completions.create(**sampling.arguments(problem, sample))
    choice = response.choices[0].model_dump()
    if response.usage is None:
        raise EvalError("the server does not say how many tokens it generated; it must be SGLang's")
    receipt = (choice.get("meta_info") or {}).get("rpc")
    if sampling.rpc is not None and receipt is None:
        raise EvalError("requests carry RPC options and no receipt came back: the server runs without RPC")
    said = choice["message"].get("content") or ""
    thoughts = choice["message"].get("reasoning_content") or ""
    seconds = round(time.monotonic() - began, 3)
    answer = task.answer(answer_part(said, thoughts, choice["finish_reason"]))
    verdict = Verdict(False) if answer is None else await judging(problem, answer)
    return {
        "problem": problem.id,
        "sample": sample,
        "correct": verdict.correct,
        "answer": answer,
        "expected": problem.expected,
        "details": verdict.details,
        "grader_error": verdict.error,
        "finish": choice["finish_reason"],
        "tokens": response.usage.completion_tokens,
        "looping": loops((thoughts + " " + said).split()),
        "receipt": receipt,
        "seconds": seconds,
        "thoughts": thoughts,
        "said": said,
    }
