"""Starting engines on the golden models, and running them greedily."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sglang_rpc import RPCConfig
from sglang_rpc.policy import lightthinker
from tests.engine import forked, on_cuda, spy, starts

GOLDENS = ("gqa_all_p64", "mha_all_p128", "gqa_group_p64", "gqa_max_p48", "gqa8x_p64")


@dataclass(frozen=True)
class Golden:
    """A recorded run of the authors' code: prompt ids, output ids with RPC and without."""

    path: Path
    prompt: list[int]
    output: list[int]
    full: list[int]
    config: RPCConfig
    compressions: int

    @classmethod
    def load(cls, path: Path) -> Golden:
        run = json.loads((path / "golden.json").read_text())
        full = json.loads((path / "golden_full.json").read_text())
        layers = json.loads((path / "config.json").read_text())["num_hidden_layers"]
        config = RPCConfig(
            interval=run["P"],
            window=run["R"],
            ratio=run["c"],
            kernel_size=run["kernel_size"],
            aggregation=run["aggregation"],
            pooling=run["pooling"].removesuffix("pool"),
            scope="all",
        )
        return cls(path, run["prompt"], run["output"], full["output"], config, len(run["compressions"]) // layers)


_alive: list[Path | str] = []  #: models whose engines this process has now


@contextlib.contextmanager
def engine(model: Path | str, rpc: RPCConfig | None, **args: Any):
    """An `sglang_rpc.Engine` in float32 that can be spied on, shut down on leaving.

    On a CUDA device it has the arguments and the environment of `on_cuda`, where neither `args` nor the environment
    names them; more ranks than GPUs skip the test. SGLang writes to `os.environ` when it starts; that is undone, so
    that no engine inherits another's settings. One at a time: SGLang's shutdown kills every descendant of the process,
    and the watchdog of another engine would then end pytest.
    """
    assert not _alive, f"the engine of {_alive[0]} is still alive; end it first, or move the test to another file"
    kind = _spied()
    settings = dict(
        model_path=str(model),
        skip_tokenizer_init=True,
        dtype="float32",
        max_total_tokens=4096,
        context_length=2048,
        max_running_requests=32,
        log_level="warning",
        random_seed=0,
    )
    device = on_cuda.device_of(args.get("device"))
    if reason := on_cuda.too_few(device, args.get("tp_size", 1) * args.get("pp_size", 1)):
        pytest.skip(reason)
    settings |= on_cuda.arguments(device) | args
    rpc = with_a_slot_each(rpc, settings["max_running_requests"])
    starts.counts["engine, forked" if forked.possible() else "engine, spawned"] += 1
    with _environment(on_cuda.environment(device, settings["dtype"])):
        built = kind(rpc=rpc, **settings)
        _alive.append(model)
        try:
            yield built
        finally:
            built.shutdown()
            _alive.remove(model)


def with_a_slot_each(rpc: RPCConfig | None, requests: int) -> RPCConfig | None:
    """`rpc` with a query slot for each request, where it names no number: a tenth of a test's small pool may be fewer,
    and late compressions would not be the recordings'."""
    if rpc is None or rpc.query_slots is not None or rpc.policy == lightthinker.NAME:
        return rpc
    return replace(rpc, query_slots=requests)


@contextlib.contextmanager
def _environment(wanted: dict[str, str]):
    """`wanted` in `os.environ` where it is not set; on leaving, the environment is what it was before."""
    before = dict(os.environ)
    os.environ.update(wanted | before)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@functools.cache
def _spied() -> type:
    """`sglang_rpc.Engine` with the spy in its scheduler, started by fork where that is possible."""
    import sglang_rpc

    class SpiedEngine(sglang_rpc.Engine):
        run_scheduler_process_func = staticmethod(spy.run_scheduler_process)

        @classmethod
        def _launch_scheduler_processes(cls, server_args, port_args, run_scheduler_process_func, **kwargs):
            if forked.possible():
                forked.start_by_fork()
                run_scheduler_process_func = forked.Forked(run_scheduler_process_func)
            return super()._launch_scheduler_processes(server_args, port_args, run_scheduler_process_func, **kwargs)

        @classmethod
        def _launch_detokenizer_subprocesses(cls, server_args, port_args, run_detokenizer_process_func):
            if forked.possible():
                run_detokenizer_process_func = forked.Forked(run_detokenizer_process_func)
            return super()._launch_detokenizer_subprocesses(server_args, port_args, run_detokenizer_process_func)

    return SpiedEngine


def greedy(tokens: int, rpc: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Sampling parameters of a greedy run of exactly `tokens` tokens."""
    params: dict[str, Any] = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **more}
    if rpc is not None:
        params["custom_params"] = {"rpc": rpc}
    return params


def six_requests(golden: Golden) -> list[tuple[list[int], int]]:
    """Prompts and lengths: other prompts, or other lengths, so that no two are compressed in the same steps."""
    prompts = [golden.prompt] * 2 + [golden.prompt[cut:] + golden.prompt[:cut] for cut in (3, 7, 11, 17)]
    return [(prompt, len(golden.output) - 20 * index) for index, prompt in enumerate(prompts)]


def staggered(running: Any, requests: list[tuple[list[int], int]], apart: float = 0.15) -> list[dict[str, Any]]:
    """Results of all `requests`, prompts and lengths, of which each comes a moment after the one before."""

    async def one(index: int, prompt: list[int], tokens: int) -> dict[str, Any]:
        await asyncio.sleep(apart * index)
        result: dict[str, Any] = await running.async_generate(input_ids=prompt, sampling_params=greedy(tokens))
        return result

    async def every() -> list[dict[str, Any]]:
        return await asyncio.gather(*(one(index, *request) for index, request in enumerate(requests)))

    results: list[dict[str, Any]] = running.loop.run_until_complete(every())
    return results


def look_inside(running: Any, tmp_path: Path, prompt: list[int]) -> dict[str, Any]:
    """What `spy` sees in the scheduler once it is idle: it answers a request before it lets go of it."""
    path = tmp_path / "spy.json"
    for _ in range(50):
        running.collective_rpc("spy", path=str(path), prompt=prompt)
        seen = json.loads(path.read_text())
        if seen["running"] == 0:
            break
        time.sleep(0.1)
    return seen


def with_and_without(running, tokens: int) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Eight prompts at random, and what they got: eight results of RPC, then eight of the same with RPC off."""
    rng = random.Random(3)
    prompts = [[rng.randrange(20, 500) for _ in range(30 + i)] for i in range(8)]
    options = [*[greedy(tokens)] * 8, *[greedy(tokens, rpc={"enabled": False})] * 8]
    return prompts, running.generate(input_ids=prompts * 2, sampling_params=options)


def look_at_ranks(running: Any, folder: Path, ranks: int, schedulers: int = 1) -> list[dict[str, Any]]:
    """What `spy` sees on each rank once all are idle.

    Of `schedulers` that take requests of their own, SGLang asks one after the other, and only the first of them hands
    the question on to every rank: so no answer is waited for.
    """
    from sglang.srt.managers.io_struct import RpcReqInput, sock_recv, sock_send

    files, seen = [folder / f"{rank}.json" for rank in range(ranks)], []
    for _ in range(50):
        for file in files:
            file.unlink(missing_ok=True)
        for _ in range(schedulers):
            sock_send(running.send_to_rpc, RpcReqInput(method="spy_on_ranks", parameters={"folder": str(folder)}))
        while running.send_to_rpc.poll(1000):
            assert (answer := sock_recv(running.send_to_rpc)).success, answer.message
        seen = [json.loads(file.read_text()) for file in files if file.exists()]
        if len(seen) == ranks and not any(each["running"] for each in seen):
            break
    assert len(seen) == ranks, seen
    return seen


def flush(running: Any) -> None:
    """Empty the tree. SGLang refuses while it has not yet let go of the last request."""
    for _ in range(50):
        if running.flush_cache().success:
            return
        time.sleep(0.1)
    raise AssertionError("the cache could not be flushed: the server is not idle")


def assert_balanced(seen: dict[str, Any]) -> None:
    """The integrity equation of an idle server: every slot is free or the tree's, every row and query slot is free."""
    assert seen["running"] == 0, seen
    assert seen["free"] + seen["evictable"] + seen["protected"] == seen["total"], seen
    assert seen["protected"] == 0, seen
    assert seen["free_rows"] == seen["rows"], seen
    assert seen["query_slots_in_use"] == 0, seen
    assert seen["stale_queries"] == 0, seen
