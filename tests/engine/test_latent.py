"""Latent attention (MLA), whose one entry a token is key and value in one, judged by an oracle that expands it."""

from __future__ import annotations

import random

import pytest

from sglang_rpc import RPCConfig
from tests.engine.engines import assert_balanced, engine, flush, greedy, look_inside
from tests.engine.latent import LatentOracle, write_model
from tests.engine.oracle import Rule
from tests.engine.test_random import LOGIT_TOLERANCE, SELECTION_TOLERANCE

SERVER = RPCConfig(interval=32, window=8, ratio=4, scope="all")
SHAPES = {
    "overlap": {},
    "page 16, mixed, retracting": dict(page_size=16, chunked_prefill_size=32, enable_mixed_chunk=True),
    "tp 2, group": dict(tp_size=2),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("latent"))


@pytest.fixture(scope="module", params=SHAPES)
def running(request, model):
    rpc = RPCConfig(
        interval=32, window=8, ratio=4, scope="all", aggregation="group" if "group" in request.param else "all"
    )
    with pytest.MonkeyPatch.context() as patch:
        if "retracting" in request.param:
            patch.setenv("SGLANG_TEST_RETRACT", "1")
            patch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
        with engine(model, rpc, **SHAPES[request.param]) as started:
            yield started, "retracting" in request.param


def test_each_token_follows_from_what_the_oracle_keeps(running, model, tmp_path):
    running, retracting = running
    oracle, rng = LatentOracle(model), random.Random(5)
    shared = [rng.randrange(20, 500) for _ in range(40)]
    prompts = [
        shared[: rng.choice([17, 40])] + [rng.randrange(20, 500) for _ in range(length)] for length in range(1, 15)
    ]
    options = [
        {"enabled": False}
        if i == 3
        else {"interval": rng.randint(8, 40), "window": rng.randint(2, 8), "ratio": rng.choice([1.5, 2, 4])}
        for i in range(len(prompts))
    ]
    lengths = [rng.randint(60, 150) for _ in prompts]
    results = running.generate(
        input_ids=prompts, sampling_params=[greedy(n, rpc=rpc) for n, rpc in zip(lengths, options, strict=True)]
    )
    judged = retracted = 0
    for prompt, rpc, result in zip(prompts, options, results, strict=True):
        meta, output = result["meta_info"], result["output_ids"]
        receipt = meta["rpc"]
        rule = Rule(rpc["interval"], rpc["window"], rpc["ratio"]) if "interval" in rpc else None
        assert (receipt["compressions"] > 0) == (rule is not None), receipt
        assert receipt["late"] == 0, receipt
        retracted += receipt["retractions"]
        gaps, closest = oracle.gaps(prompt, output, rule)
        if closest > SELECTION_TOLERANCE:
            assert max(gaps) < LOGIT_TOLERANCE, (gaps.index(max(gaps)), max(gaps), closest, receipt)
            judged += 1
        if rule is not None:
            uncompressed, _ = oracle.gaps(prompt, output, None)
            assert max(uncompressed) > LOGIT_TOLERANCE  # the oracle tells the two apart
    assert judged > len(prompts) // 2
    assert (retracted > 3) == retracting
    assert len(set(results[0]["output_ids"])) > 20
    seen = look_inside(running, tmp_path, prompts[0])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0
    flush(running)
