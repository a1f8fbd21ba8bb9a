"""Windows with a KV pool of their own on a CUDA device: backends that translate slots themselves, under CUDA graphs."""

from __future__ import annotations

import os
import statistics
from dataclasses import replace

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine import on_cuda
from tests.engine.engines import engine, look_inside, with_and_without
from tests.engine.oracle import Rule
from tests.engine.window_pool import FAMILIES, assert_both_pools_balanced
from tests.engine.windows import Judge, write_model

pytestmark = pytest.mark.gpu
BACKENDS = on_cuda.attention_backends(os.environ.get("SGLANG_RPC_GPU_BACKENDS"))
RULE = Rule(interval=128, window=16, ratio=4)  # evicts 96: whole pages of 16
TOKENS = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Heads of a size that every backend has."""
    family = FAMILIES["mellum"]
    path = write_model(tmp_path_factory.mktemp("mellum"), replace(family, config={**family.config, "head_dim": 64}))
    return Judge(path, family.reach), path


@pytest.mark.parametrize(("page", "late"), [(1, 128), (16, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compression_adds_little_to_the_error_of_bfloat16(model, tmp_path, monkeypatch, backend, page, late):
    """How far tokens lie below a float32 judge's best, on the mean. `late`: entries before slots are freed together."""
    judge, path = model
    monkeypatch.setenv("SGLANG_SWA_EVICTION_INTERVAL", str(late))
    rpc = RPCConfig(interval=RULE.interval, window=RULE.window, ratio=RULE.ratio, scope="all", window_pool="swa")
    arguments = {"device": "cuda", "dtype": "bfloat16", "attention_backend": backend, "page_size": page}
    with engine(path, rpc, **arguments) as running:
        prompts, results = with_and_without(running, TOKENS)
        seen = look_inside(running, tmp_path, [1])
    assert_both_pools_balanced(seen)
    assert seen["decodes"]["eager"] == 0
    for result in results[:8]:
        assert result["meta_info"]["rpc"]["compressions"] == (TOKENS - 1 - RULE.window) // RULE.interval

    def mean_gap(results, rule) -> float:
        pairs = zip(prompts, results, strict=True)
        gaps = [judge.logprobs(prompt, result["output_ids"], rule, page=page)[1] for prompt, result in pairs]
        return statistics.mean(torch.cat(gaps).tolist())

    compressed, alone = mean_gap(results[:8], RULE), mean_gap(results[8:], None)
    otherwise = mean_gap(results[:8], None)
    print(f"mean gap: with RPC {compressed:.4f}, alone {alone:.4f}, by a judge that does not compress {otherwise:.4f}")
    assert compressed <= alone + 0.05 * otherwise
