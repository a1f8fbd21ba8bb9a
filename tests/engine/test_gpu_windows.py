"""Windows on a CUDA device: with a KV pool of their own, where backends translate slots themselves, and with drafts."""

from __future__ import annotations

import os
import statistics
from dataclasses import replace

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine import on_cuda
from tests.engine.engines import assert_balanced, engine, look_inside, with_and_without
from tests.engine.oracle import Rule
from tests.engine.speculative import AHEAD, branching, drafting
from tests.engine.test_window_drafts import weaken, without_windows
from tests.engine.window_pool import FAMILIES, assert_both_pools_balanced
from tests.engine.windows import FAMILIES as PLAIN
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
    assert_little_is_added(judge, prompts, results, page)


def assert_little_is_added(judge, prompts, results, page=1) -> None:
    """`results` of `with_and_without`; `page`: entries of which a compression evicts a multiple."""
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


#: Name -> rows that a request verifies, what else differs, and the backends on which RPC does not refuse it.
DRAFTS = {
    "chain-overlap": (4, {"page_size": 16, **AHEAD}, ("fa3", "triton")),
    "branches": (6, branching(3, 2, page_size=1), ("fa3",)),
    "earlier-text": (6, {"speculative_algorithm": "NGRAM", "page_size": 1}, ("fa3",)),
}


@pytest.mark.parametrize(
    ("backend", "shape"),
    [(backend, shape) for shape, (_, _, served) in DRAFTS.items() for backend in BACKENDS if backend in served],
)
def test_drafts_of_a_model_with_windows(tmp_path, backend, shape):
    """In the plain pool: each row of a verify sees its window, in graphs too."""
    tokens, more, _ = DRAFTS[shape]
    family = PLAIN["olmo3"]
    path = write_model(tmp_path / "model", replace(family, config={**family.config, "hidden_size": 256}))
    weaken(path)
    draft = None if "speculative_algorithm" in more else without_windows(path, tmp_path / "draft")
    rpc = RPCConfig(interval=RULE.interval, window=RULE.window, ratio=RULE.ratio, scope="all")
    args = drafting(draft, tokens, attention_backend=backend, **more)
    with engine(path, rpc, device="cuda", dtype="bfloat16", **args) as running:
        prompts, results = with_and_without(running, TOKENS)
        prompts, results = with_and_without(running, TOKENS)  # once more, so that texts are known
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert_little_is_added(Judge(path, family.reach), prompts, results)
    assert all(result["meta_info"]["rpc"]["tokens_per_step_compressed"] > 1.3 for result in results[:8])
