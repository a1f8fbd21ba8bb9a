"""Models with sliding windows: after a compression, window layers see what they would have seen without it."""

from __future__ import annotations

import random

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine.engines import assert_balanced, engine, flush, greedy, look_inside
from tests.engine.windows import FAMILIES, Judge, check, write_model

torch.set_num_threads(1)  # more threads on these tiny tensors only fight the server for the cores

SHAPES = {
    "overlap": {},
    "page 16, mixed, retracting": dict(page_size=16, chunked_prefill_size=32, enable_mixed_chunk=True),
    "no overlap, mixed": dict(disable_overlap_schedule=True, chunked_prefill_size=16, enable_mixed_chunk=True),
    "tp 2": dict(tp_size=2),
}
BY_DEFAULT = {
    "gemma3": ("page 16, mixed, retracting", "tp 2"),
    "gemma2": ("overlap",),
    "olmo3": ("no overlap, mixed",),
    "cohere2": ("overlap",),
}
RUNS = [
    pytest.param(
        (family, shape),
        id=f"{family}, {shape}",
        marks=() if shape in BY_DEFAULT[family] else pytest.mark.long,
    )
    for family in FAMILIES
    for shape in SHAPES
]


@pytest.fixture(scope="module", params=RUNS)
def running(request, tmp_path_factory):
    family, shape = request.param
    model = write_model(tmp_path_factory.mktemp(family), FAMILIES[family])
    rpc = RPCConfig(interval=40, window=8, ratio=2, scope="all")
    with pytest.MonkeyPatch.context() as patch:
        if "retracting" in shape:
            patch.setenv("SGLANG_TEST_RETRACT", "1")
            patch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
        with engine(model, rpc, **SHAPES[shape]) as started:
            yield started, Judge(model, FAMILIES[family].reach), FAMILIES[family].reach, "retracting" in shape


def drawn(rng: random.Random, reach: int) -> dict:
    """Options of a request that leave the windows whole, and in half of the cases just so."""
    window, ratio = rng.randint(2, 8), rng.choice([1.5, 2, 4])
    if rng.random() < 0.3:
        return {"interval": rng.randint(12, 30), "window": window, "ratio": ratio, "min_kept": reach - window}
    interval = next(p for p in range(2, 200) if p >= ratio and int(p / ratio) + window >= reach)
    return {"interval": interval + rng.choice([0, 0, rng.randint(1, 20)]), "window": window, "ratio": ratio}


def test_each_token_has_the_probability_that_the_judge_gives_it(running, tmp_path):
    running, judge, reach, retracting = running
    rng = random.Random(5)
    shared = [rng.randrange(20, 500) for _ in range(40)]
    prompts = [
        shared[: rng.choice([17, 40])] + [rng.randrange(20, 500) for _ in range(length)] for length in range(1, 13)
    ]
    options = [{"enabled": False} if i in (3, 7) else drawn(rng, reach) for i in range(len(prompts))]
    lengths = [rng.randint(90, 190) for _ in prompts]
    results = running.generate(
        input_ids=prompts,
        sampling_params=[greedy(n, rpc=rpc) for n, rpc in zip(lengths, options, strict=True)],
        return_logprob=True,
        logprob_start_len=-1,
    )
    judged = retracted = 0
    for prompt, rpc, result in zip(prompts, options, results, strict=True):
        judged += check(judge, prompt, rpc, result)
        retracted += result["meta_info"]["rpc"]["retractions"]
    assert judged > len(prompts) // 2
    assert (retracted > 3) == retracting
    assert len(set(results[0]["output_ids"])) > 12
    seen = look_inside(running, tmp_path, prompts[0])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0
    flush(running)


def test_a_request_that_would_cut_into_the_windows_is_refused(running):
    running, _, reach, _ = running
    short = {"interval": 2 * (reach - 8) - 1, "window": 8, "ratio": 2}
    with pytest.raises(ValueError, match=f"interval {2 * (reach - 8)} or min_kept {reach - 8} would do"):
        running.generate(input_ids=[5, 6, 7], sampling_params=greedy(4, rpc=short))
    running.generate(input_ids=[5, 6, 7], sampling_params=greedy(4, rpc={**short, "interval": 2 * (reach - 8)}))
