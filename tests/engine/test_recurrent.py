"""Models with recurrent layers: full attention is compressed, states hold the whole text, and the tree gives both."""

from __future__ import annotations

import random

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine.engines import assert_balanced, engine, flush, greedy, look_inside
from tests.engine.oracle import Rule
from tests.engine.recurrent import FAMILIES, ON_A_CPU, Judge, write_model
from tests.engine.spy import EVICT_STATES
from tests.engine.test_random import SELECTION_TOLERANCE

torch.set_num_threads(1)  # more threads on these tiny tensors only fight the server for the cores

#: A log probability may differ as much: float32 in another order of summation.
TOLERANCE = 5e-3 if torch.cuda.is_available() else 1e-3
#: States are copied under overlap as a request decodes, which SGLang does on GPUs alone.
TRACKED = "tracked, overlap"
#: Pages of more than one slot too: SGLang has them where states are tracked.
TRACKED_RESTORED = "tracked, overlap, page 16, restored"
#: Retracted requests are prefilled again: there are no host backups.
ANEW = "mixed, chunked, computed anew"
RESTORED = "mixed, chunked, restored"
TWO_RANKS = "tp 2, restored"
FEW = dict(enable_mixed_chunk=True, chunked_prefill_size=32, max_running_requests=4)
BESIDE = dict(disable_overlap_schedule=False, mamba_radix_cache_strategy="extra_buffer", mamba_track_interval=64)
SHAPES = {
    "plain": {},
    # States of prompts are evicted while retracted requests wait: their prefill finds none, and goes past the prompt.
    ANEW: FEW,
    # As few states: these come back beside those of the tree, or where the tree has none.
    RESTORED: FEW | dict(max_mamba_cache_size=14),
    TWO_RANKS: dict(tp_size=2, max_running_requests=4),
    TRACKED: BESIDE,
    TRACKED_RESTORED: BESIDE | dict(page_size=16, max_running_requests=4),
}
RETRACTING = (ANEW, RESTORED, TWO_RANKS, TRACKED_RESTORED)
BY_DEFAULT = {"qwen3_next": (ANEW, RESTORED), "qwen3_5_text": ("plain",)}


def marks_of(family: str, shape: str):
    if shape in (TRACKED, TRACKED_RESTORED):
        return pytest.mark.gpu
    return () if shape in BY_DEFAULT[family] else pytest.mark.long


RUNS = [
    pytest.param((family, shape), id=f"{family}, {shape}", marks=marks_of(family, shape))
    for family in FAMILIES
    for shape in SHAPES
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    paths = {family: write_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}
    return {family: (path, Judge(path)) for family, path in paths.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_sglang_says_what_transformers_says(models, family):
    model, judge = models[family]
    rng = random.Random(1)
    prompts = [[rng.randrange(20, 500) for _ in range(length)] for length in (5, 40, 33)]
    expected = [judge.greedy(prompt, 40) for prompt in prompts]
    with engine(model, None, **ON_A_CPU, chunked_prefill_size=16) as stock:
        results = stock.generate(input_ids=prompts, sampling_params=[greedy(40)] * len(prompts))
    assert [result["output_ids"] for result in results] == expected
    assert all(len(set(output)) > 20 for output in expected)


@pytest.fixture(scope="module", params=RUNS)
def running(request, models):
    family, shape = request.param
    model, judge = models[family]
    with pytest.MonkeyPatch.context() as patch:
        if shape in RETRACTING:
            patch.setenv("SGLANG_TEST_RETRACT", "1")
            patch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "11")
        if shape == ANEW:
            patch.setenv(EVICT_STATES, "1")
        patch.setenv("SGLANG_MAMBA_CONV_DTYPE", "float32")  # as the CPU reference mode has it
        rpc = RPCConfig(interval=40, window=8, ratio=2, scope="all", host_backup_gb=0 if shape == ANEW else 0.5)
        with engine(model, rpc, **(ON_A_CPU | SHAPES[shape])) as started:
            yield started, judge, shape


def requests(rng: random.Random):
    """Prompts of a common beginning, options, lengths."""
    shared = [rng.randrange(20, 500) for _ in range(40)]
    for index in range(10):
        own = [rng.randrange(20, 500) for _ in range(rng.randint(1, 20))]
        rpc = {"interval": rng.randint(12, 40), "window": rng.randint(2, 8), "ratio": rng.choice([1.5, 2, 4])}
        yield shared[: rng.choice([0, 17, 40])] + own, {"enabled": False} if index == 3 else rpc, rng.randint(60, 110)


def generate(running, prompts, options, lengths):
    return running.generate(
        input_ids=prompts,
        sampling_params=[greedy(n, rpc=rpc) for n, rpc in zip(lengths, options, strict=True)],
        return_logprob=True,
        logprob_start_len=-1,
    )


def check(judge: Judge, prompt: list[int], rpc: dict, result: dict) -> bool:
    """Each token has the probability that the judge gives it; whether it could tell.

    Not where a selection was too close to call, nor of a request that was retracted once it had been compressed: it was
    prefilled again, uncompressed, and then compressed late.
    """
    meta, output = result["meta_info"], result["output_ids"]
    if meta["rpc"]["late"]:
        assert meta["rpc"]["retractions"] > meta["rpc"]["restored"] == 0
        return False
    rule = Rule(rpc["interval"], rpc["window"], rpc["ratio"]) if "interval" in rpc else None
    expected, gaps, closest = judge.logprobs(prompt, output, rule)
    actual = torch.tensor([logprob for logprob, _, _ in meta["output_token_logprobs"]])
    off = (actual - expected).abs()
    print(rpc, len(prompt), len(output), f"off {off.max():.1e} gap {gaps.max():.1e} closest cut {closest:.1e}", meta)
    if closest <= SELECTION_TOLERANCE:
        return False
    assert off.max() < TOLERANCE, (int(off.argmax()), closest, meta)
    assert gaps.max() < TOLERANCE, (int(gaps.argmax()), closest, meta)
    if rule is not None:
        assert (actual - judge.logprobs(prompt, output, None)[0]).abs().max() > 1e-2  # it tells them apart
    return True


def test_each_token_has_the_probability_that_the_judge_gives_it(running, tmp_path):
    running, judge, shape = running
    retracting = shape in RETRACTING
    prompts, options, lengths = zip(*requests(random.Random(5)), strict=True)
    results = generate(running, list(prompts), options, lengths)
    judged = sum(
        check(judge, prompt, rpc, result) for prompt, rpc, result in zip(prompts, options, results, strict=True)
    )
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert judged > (2 if shape == ANEW else len(prompts) // 2)
    retracted = [receipt for receipt in receipts if receipt["retractions"]]
    # A request that came back before its first compression, and was judged.
    assert bool([receipt for receipt in retracted if not receipt["late"]]) == retracting
    assert sum(receipt["compressions"] for receipt in receipts) > 10
    assert (sum(receipt["retractions"] for receipt in retracted) > 3) == retracting
    restored = [receipt for receipt in retracted if receipt["restored"] == receipt["retractions"]]
    if retracting and shape != ANEW:  # all but the one that RPC leaves alone
        assert len(restored) >= len(retracted) - 1
        assert any(receipt["compressions"] > 1 for receipt in restored)
    else:
        assert restored == []
    seen = look_inside(running, tmp_path, list(prompts[0]))
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0

    # What the tree has of these prompts is of their tokens, state and KV alike.
    further = [[*prompt, 77, 78, 79] for prompt in prompts]
    again = [generate(running, [prompt], [{"enabled": False}], [12])[0] for prompt in further]  # one retracts no other
    for prompt, result in zip(further, again, strict=True):
        assert check(judge, prompt, {}, result)
    cached = [result["meta_info"]["cached_tokens"] for result in again]
    if retracting:
        assert any(cached)
    elif shape == "plain":
        assert cached == [len(prompt) for prompt in prompts]  # as without compression

    # The same prompt once more, as on a fresh server.
    repeated = generate(running, list(prompts[:4]), options[:4], lengths[:4])
    judged = [check(judge, *each) for each in zip(prompts, options, repeated, strict=False)]
    assert any(judged)
    assert_balanced(look_inside(running, tmp_path, list(prompts[0])))
    flush(running)
