"""Hundreds of random requests at once, judged by the oracle and by SGLang's strict memory checks.

By default a third of them (`a_third`), all with `-m long` and on a GPU. `SGLANG_RPC_RANDOM_REQUESTS` and
`SGLANG_RPC_RANDOM_SEED` make it longer or other.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.engine.engines import Golden, assert_balanced, engine, flush, look_inside
from tests.engine.oracle import Oracle, Rule

torch.set_num_threads(1)  # more threads on these tiny tensors only fight the server for the cores

REQUESTS = int(os.environ.get("SGLANG_RPC_RANDOM_REQUESTS", "500"))
SEED = int(os.environ.get("SGLANG_RPC_RANDOM_SEED", "20261"))
VOCABULARY = 512
THINK_START, THINK_END = 7, 11
#: A greedy token's logit may lie this far below the oracle's best: float32 in another order of summation.
LOGIT_TOLERANCE = 2e-3
#: Below this relative score gap, which of two candidates is kept is rounding's to say.
SELECTION_TOLERANCE = 1e-5

SHAPES = {
    "overlap": ({}, 0.5),
    "no overlap, page 16, mixed": (
        {"disable_overlap_schedule": True, "page_size": 16, "chunked_prefill_size": 32, "enable_mixed_chunk": True},
        0.25,
    ),
    "overlap, mixed, retracting": ({"chunked_prefill_size": 32, "enable_mixed_chunk": True}, 0.25),
}
#: The race that a compaction on the wrong side of a forward would be: many requests, CUDA graphs and overlap on.
GPU_SHAPES = {
    "cuda graphs": ({"device": "cuda"}, 4),
    "cuda graphs, page 16, mixed": (
        {"device": "cuda", "page_size": 16, "chunked_prefill_size": 32, "enable_mixed_chunk": True},
        2,
    ),
    "cuda graphs, PyTorch scoring": ({"device": "cuda", "rpc_scoring": "reference"}, 1),
}


@dataclass
class Case:
    prompt: list[int]
    sampling: dict[str, Any]
    rule: Rule | None
    scope: str
    n: int = 1
    abort_after: float | None = None
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> tuple:
        """What makes it special: switched off, scope, samples, abort, stop tokens, and where its length ends it."""
        tokens, due = self.sampling["max_new_tokens"], self.rule and self.rule.interval + self.rule.window
        ends = "at once" if tokens <= 3 else "at its first date" if due and abs(tokens - due) <= 2 else "later"
        return (due is None, self.scope, self.n > 1, self.abort_after is None, "stop_token_ids" in self.sampling, ends)


def draw(rng: random.Random) -> Case:
    family = rng.randrange(4)
    shared = [(family * 37 + i * 13) % 400 + 50 for i in range(40)]
    prompt = shared[: rng.choice([0, 17, 40])] + [rng.randrange(20, VOCABULARY) for _ in range(rng.randint(1, 60))]
    scope = rng.choice(["all", "all", "think"])
    if scope == "think" and rng.random() < 0.8:
        prompt.append(THINK_START)
    interval, window = rng.randint(8, 60), rng.randint(2, 8)
    rpc = {
        "enabled": rng.random() < 0.85,
        "interval": interval,
        "window": window,
        "ratio": rng.choice([1.5, 2, 4, 8]),
        "scope": scope,
    }
    boundary = interval + window + rng.randint(-1, 2)
    tokens = rng.choice([rng.randint(1, 3), boundary, boundary, *(rng.randint(30, 180) for _ in range(7))])
    sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": tokens, "custom_params": {"rpc": rpc}}
    if rng.random() < 0.3:
        sampling["stop_token_ids"] = [rng.randrange(VOCABULARY) for _ in range(12)]
    rule = Rule(interval, window, rpc["ratio"]) if rpc["enabled"] else None
    abort_after = rng.uniform(0, 1.5) if rng.random() < 0.12 else None
    n = rng.randint(2, 3) if rng.random() < 0.1 and abort_after is None else 1
    return Case(prompt, sampling, rule, scope, n, abort_after)


def a_third(cases: list[Case]) -> list[Case]:
    """Of each kind the first, and then every third: all kinds, and their combinations, that all of the cases have."""
    seen: Counter[tuple] = Counter()
    chosen = []
    for case in cases:
        if seen[case.kind] % 3 == 0:
            chosen.append(case)
        seen[case.kind] += 1
    return chosen


async def serve(running: Any, cases: list[Case], at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)

    async def one(index: int, case: Case) -> None:
        async with gate:
            call = running.async_generate(
                input_ids=case.prompt,
                sampling_params={**case.sampling, "n": case.n},
                rid=None if case.n > 1 else f"request-{index:06d}",
            )
            task = asyncio.ensure_future(call)
            if case.abort_after is not None:
                await asyncio.sleep(case.abort_after)
                running.tokenizer_manager.abort_request(rid=f"request-{index:06d}")  # SGLang aborts by prefix
            result = await asyncio.wait_for(task, timeout=300)
            case.results = result if isinstance(result, list) else [result]

    await asyncio.gather(*(one(i, case) for i, case in enumerate(cases)))


def thinking(case: Case, output: list[int]) -> Rule | None:
    """The case's rule with its think segment, read from the tokens by other means than the package's."""
    if case.rule is None or case.scope == "all":
        return case.rule
    opened = max((i for i, t in enumerate(case.prompt) if t == THINK_START), default=-1)
    closed = max((i for i, t in enumerate(case.prompt) if t == THINK_END), default=-1)
    first = 0 if opened > closed else next((i + 1 for i, t in enumerate(output) if t == THINK_START), None)
    if first is None:
        return None
    until = next((i + 1 for i in range(first, len(output)) if output[i] == THINK_END), 10**9)
    rule = case.rule
    return Rule(rule.interval, rule.window, rule.ratio, first=first, until=until)


def environment(name: str) -> dict[str, str]:
    """What SGLang reads at the start of the shape `name`."""
    if "retracting" in name:
        return {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "7"}
    # The check of every page makes the host wait for the device at each step, so that nothing would race. One shape has
    # it; all have that of the counts, which asks the host alone.
    return {"SGLANG_CHECK_KV_PAGE_INVARIANTS": "0"} if name in GPU_SHAPES and "scoring" not in name else {}


RUNS = [
    *(pytest.param((shape, a_third), id=f"{shape}, a third") for shape in SHAPES),
    *(pytest.param((shape, list), id=f"{shape}, all", marks=pytest.mark.long) for shape in SHAPES),
    *(pytest.param((shape, list), id=shape, marks=pytest.mark.gpu) for shape in GPU_SHAPES),
]


@pytest.fixture(scope="module", params=RUNS)
def storm(request, goldens):
    name, choose = request.param
    arguments, share = {**SHAPES, **GPU_SHAPES}[name]
    arguments = dict(arguments)
    golden = Golden.load(goldens / "gqa_all_p64")
    rpc = golden.config.__class__(
        interval=64,
        window=8,
        ratio=4,
        scope="think",
        think_start=THINK_START,
        think_end=THINK_END,
        scoring=arguments.pop("rpc_scoring", "auto"),
    )
    count = max(1, int(REQUESTS * share))
    rng = random.Random(SEED + count)
    cases = choose([draw(rng) for _ in range(count)])
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment(name).items():
            patch.setenv(variable, value)
        with engine(golden.path, rpc, max_total_tokens=3000, **arguments) as running:
            yield running, Oracle(golden.path), cases, name


def test_none_leaks_hangs_or_returns_anothers_tokens(storm, tmp_path):
    running, oracle, cases, name = storm
    running.loop.run_until_complete(serve(running, cases, at_once=24))

    wrong, judged, compressed, retracted = [], 0, 0, 0
    for index, case in enumerate(cases):
        assert len(case.results) == case.n
        for result in case.results:
            meta, output = result["meta_info"], result["output_ids"]
            finish = meta["finish_reason"]["type"]
            if finish == "abort":
                assert case.abort_after is not None, (index, meta)
                continue
            assert finish == "stop" or len(output) == case.sampling["max_new_tokens"], (index, meta)
            receipt = meta["rpc"]
            assert receipt["generated"] == len(output)
            assert receipt["compressions"] == 0 or case.rule is not None
            compressed += receipt["compressions"] > 0
            if meta["num_retractions"]:
                retracted += 1  # re-prefilled with full attention: other keys, other tokens
                continue
            assert receipt["late"] == 0, (index, receipt)
            gaps, closest = oracle.gaps(case.prompt, output, thinking(case, output))
            judged += 1
            if max(gaps) > LOGIT_TOLERANCE and closest > SELECTION_TOLERANCE:
                wrong.append((index, max(gaps), gaps.index(max(gaps)), closest, receipt))
    print(f"{len(cases)} requests: {judged} judged token by token, {compressed} compressed, {retracted} retracted")
    assert not wrong, wrong
    assert compressed > len(cases) // 4
    assert (retracted > 0) == ("retracting" in name)
    seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert seen["decodes"]["eager" if name in GPU_SHAPES else "graph"] == 0
    flush(running)
    after = look_inside(running, tmp_path, [1])
    assert after["free"] == after["total"]
