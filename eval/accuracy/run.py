"""One run: what is to be sampled, under which configuration, and where it is kept."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai
from tqdm import tqdm

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from eval.accuracy.sampling import Sampling, collect
from eval.accuracy.statistics import Report, report
from eval.accuracy.store import Store
from eval.bench import machine


@dataclass(frozen=True)
class Run:
    """None: the task's own, or the one that the server names."""

    task: str
    out: Path
    base_url: str
    problems: int | None = None
    problem_seed: int = 0
    samples: int = 1
    concurrency: int = 8
    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int = 0
    rpc: dict[str, Any] | None = None  #: custom_params.rpc of every request
    quiet: bool = False


def run(asked: Run) -> Report:
    """Sample what is not there yet, and report on all of it. Raises EvalError, alone."""
    task = tasks.find(asked.task, asked.problems, asked.problem_seed)
    sampling = Sampling(
        model=asked.model or _served(asked.base_url),
        temperature=task.temperature if asked.temperature is None else asked.temperature,
        top_p=task.top_p if asked.top_p is None else asked.top_p,
        max_tokens=asked.max_tokens or task.max_tokens,
        seed=asked.seed,
        rpc=asked.rpc,
    )
    config = {
        "task": asked.task,
        "problems": len(task.problems),
        "samples": asked.samples,
        "problem_seed": asked.problem_seed,
        **asdict(sampling),
        "server": _server(asked.base_url),
        **{name: value for name, value in machine.conditions().items() if name not in ("dirty", "env")},
    }
    store = Store(asked.out, config)
    try:
        every = [(problem, sample) for sample in range(asked.samples) for problem in task.problems]
        wanted = [(problem, sample) for problem, sample in every if (problem.id, sample) not in store.done]
        with tqdm(total=len(every), initial=len(every) - len(wanted), unit="sample", disable=asked.quiet) as bar:

            def keep(row: dict[str, Any]) -> None:
                store.add(row)
                bar.update()
                bar.set_postfix_str(f"right {sum(r['correct'] for r in store.rows) / len(store.rows):.1%}")

            if wanted:
                with _one_error():
                    asyncio.run(_collect(asked, task, sampling, wanted, keep))
    finally:
        store.close()
    return report(store.rows)


async def _collect(asked: Run, task: tasks.Task, sampling: Sampling, wanted: Any, keep: Any) -> None:
    # Answers may take as long as thinking does.
    async with openai.AsyncOpenAI(base_url=asked.base_url, api_key="none", timeout=None, max_retries=0) as client:
        await collect(client, task, sampling, wanted, asked.concurrency, keep)


@contextmanager
def _one_error() -> Iterator[None]:
    """Of a group of workers' errors, the first sentence."""
    try:
        yield
    except ExceptionGroup as errors:
        found = errors.subgroup(EvalError)
        if found is None:
            raise
        error: BaseException = found
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from errors


def _served(base_url: str) -> str:
    """The name of the one model that is served there."""
    try:
        return openai.OpenAI(base_url=base_url, api_key="none", timeout=60).models.list().data[0].id
    except (openai.APIError, IndexError) as error:
        raise EvalError(f"no server answers at {base_url} ({error}); --base-url ends in /v1") from error


def _server(base_url: str) -> dict[str, Any]:
    """What of the server decides its answers: dtype, attention, and RPC's configuration (None: off)."""
    try:
        with urllib.request.urlopen(base_url.removesuffix("/v1") + "/server_info", timeout=60) as response:
            info = json.load(response)
    except (OSError, ValueError) as error:
        raise EvalError(f"{base_url} is no SGLang server: /server_info does not answer ({error})") from error
    rpc = info["internal_states"][0].get("rpc")
    return {
        **{name: info.get(name) for name in ("dtype", "kv_cache_dtype", "attention_backend", "tp_size", "version")},
        "rpc": None if rpc is None else rpc["config"],
    }
