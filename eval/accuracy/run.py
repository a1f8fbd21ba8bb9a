"""One run: what is to be sampled, under which configuration, and where it is kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import openai
from tqdm import tqdm

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from eval.accuracy.judges import Judges
from eval.accuracy.sampling import Judging, Sampling, collect
from eval.accuracy.statistics import Report, report
from eval.accuracy.store import Store
from eval.accuracy.verdict import Problem, Verdict
from eval.bench import machine

HERE = Path(__file__).parent
#: Seconds for one answer, thoughts included, after which the request is sent again.
ANSWER_SECONDS = 4 * 3600
#: Of /server_info: what decides answers beside the model.
SERVER_SETTINGS = (
    *("model_path", "version", "dtype", "kv_cache_dtype", "quantization", "attention_backend", "tp_size"),
    *("reasoning_parser", "chat_template", "enable_deterministic_inference"),
)


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
    data: Path | None = None  #: rows of the task; None: its own


def run(asked: Run) -> Report:
    """Sample what is not there yet, and report on all of it. Raises EvalError, alone."""
    base_url = asked.base_url.rstrip("/")
    model = _served(base_url, asked.model)
    task = tasks.find(asked.task, asked.problems, asked.problem_seed, asked.data)  # may be gigabytes from the hub
    sampling = Sampling(
        model=model,
        temperature=task.temperature if asked.temperature is None else asked.temperature,
        top_p=task.top_p if asked.top_p is None else asked.top_p,
        max_tokens=task.max_tokens if asked.max_tokens is None else asked.max_tokens,
        seed=asked.seed,
        rpc=asked.rpc,
    )
    if asked.samples > 1 and sampling.temperature == 0:
        raise EvalError(f"--samples {asked.samples} at temperature 0 would be the same sample again; use --samples 1")
    server = server_settings(base_url)
    if asked.rpc is not None and server["rpc"] is None:
        raise EvalError(f"--rpc needs a server with RPC, and {base_url} runs without")
    for name in ["trace", *(asked.rpc or {})]:
        (server["rpc"] or {}).pop(name, None)  # where traces go decides nothing; the rest is the requests' own
    config = {
        "task": asked.task,
        "problem_seed": asked.problem_seed,
        "data_sha256": task.data_sha256,
        "measure": task.measure,
        "graders": task.graders,
        **asdict(sampling),
        "model_sha": sha_of_model(server.pop("model_path")),
        "grader_sha": machine.sha_of(sorted([*HERE.glob("*.py"), *tasks.sources(asked.task)])),
        "server": server,
    }
    said = {"samples": asked.samples, "concurrency": asked.concurrency, "source": task.source, **machine.conditions()}
    store = Store(asked.out, config, said)
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
    keys = {(problem.id, sample) for problem, sample in every}
    rows = [row for row in store.rows if (row["problem"], row["sample"]) in keys]
    return replace(report(rows), measure=task.measure, more=tuple(task.more(rows)))


async def _collect(asked: Run, task: tasks.Task, sampling: Sampling, wanted: Any, keep: Any) -> None:
    url = asked.base_url.rstrip("/")
    async with openai.AsyncOpenAI(base_url=url, api_key="none", timeout=ANSWER_SECONDS, max_retries=0) as client:
        with _judging(task, asked.concurrency) as judging:
            await collect(client, task, judging, sampling, wanted, asked.concurrency, keep)


@contextmanager
def _judging(task: tasks.Task, concurrency: int) -> Iterator[Judging]:
    if task.judge_seconds is not None:
        count = min(concurrency, len(os.sched_getaffinity(0)))
        with closing(Judges(task.judge, count, task.judge_seconds)) as judges:
            yield judges
        return

    async def at_once(problem: Problem, answer: str) -> Verdict:
        return task.judge(problem, answer)

    yield at_once


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


def _served(base_url: str, wanted: str | None) -> str:
    """The name of the model to ask for. Raises EvalError if it is not served there."""
    try:
        names = [model.id for model in openai.OpenAI(base_url=base_url, api_key="none", timeout=60).models.list().data]
    except openai.APIError as error:
        raise EvalError(f"no server answers at {base_url} ({error}); --base-url ends in /v1") from error
    if not names or (wanted is not None and wanted not in names):
        raise EvalError(
            f"--model must be one of those served at {base_url}: {', '.join(names) or 'none'}; got {wanted}"
        )
    return wanted or names[0]


def server_settings(base_url: str) -> dict[str, Any]:
    """What of the server decides its answers; `rpc` is None where RPC is off."""
    try:
        with urllib.request.urlopen(base_url.removesuffix("/v1") + "/server_info", timeout=60) as response:
            info = json.load(response)
        rpc = info["internal_states"][0].get("rpc")
        return {
            **{name: info.get(name) for name in SERVER_SETTINGS},
            "rpc": None if rpc is None else dict(rpc["config"]),
            "scope_in_effect": None if rpc is None else rpc["scope_in_effect"],
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise EvalError(
            f"{base_url} is no SGLang server: /server_info does not answer as one ({type(error).__name__}: {error})"
        ) from error


def sha_of_model(path: str | None) -> str:
    """Of a local model's configuration and weights: all of small files, size and beginning of large ones."""
    directory = Path(path or "")
    if not path or not directory.is_dir():
        return f"{path}"  # a name on a hub
    digest = hashlib.sha256()
    for file in sorted(file for file in directory.iterdir() if file.suffix in (".json", ".safetensors", ".jinja")):
        with file.open("rb") as content:
            digest.update(f"{file.name} {file.stat().st_size}".encode() + content.read(2**24))
    return digest.hexdigest()[:12]
