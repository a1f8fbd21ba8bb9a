"""Outputs of a served model: text and ids of the prompt, text and ids of what was generated, one line of JSON each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from eval.accuracy.errors import EvalError
from eval.bench import client
from eval.retokenized.tokenizers import Tokenizer

NAME = "samples.jsonl"


@dataclass(frozen=True)
class Sample:
    """One output."""

    problem: str
    temperature: float
    question: str
    prompt: str  #: the chat template's rendering of `question`
    prompt_ids: list[int]
    text: str
    output_ids: list[int]  #: through the stop token, if there is one


def generate(
    url: str, tokenizer: Tokenizer, questions: Sequence[str], temperatures: Sequence[float], tokens: int, out: Path
) -> list[Sample]:
    """The samples of `out`, generated unless they are there; all questions are asked at once. Raises EvalError."""
    path = out / NAME
    if not path.exists():
        every = [
            sample
            for temperature in temperatures
            for sample in asyncio.run(_ask(url, tokenizer, questions, temperature, tokens))
        ]
        out.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in every), encoding="utf-8")
    return [Sample(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


async def _ask(
    url: str, tokenizer: Tokenizer, questions: Sequence[str], temperature: float, tokens: int
) -> list[Sample]:
    async def one(http: aiohttp.ClientSession, number: int, question: str) -> Sample:
        prompt = tokenizer.chat([{"role": "user", "content": question}], True)
        sampling: dict[str, Any] = {"max_new_tokens": tokens, "temperature": temperature}
        if temperature > 0:
            sampling["sampling_seed"] = number
        body = {"text": prompt, "sampling_params": sampling, "return_prompt_token_ids": True}
        async with http.post("/generate", json=body) as response:
            answer = await response.json()
        if response.status != 200 or answer["meta_info"]["finish_reason"]["type"] == "abort":
            raise EvalError(f"question {number}: the server answered {response.status}: {str(answer)[:300]}")
        made = answer["text"], answer["output_ids"]
        return Sample(f"{number:03}", temperature, question, prompt, answer["prompt_token_ids"], *made)

    try:
        async with client.session(url) as http:
            return await asyncio.gather(*(one(http, number, each) for number, each in enumerate(questions)))
    except (aiohttp.ClientError, OSError) as error:
        raise EvalError(f"--base-url {url} does not answer ({error})") from error
