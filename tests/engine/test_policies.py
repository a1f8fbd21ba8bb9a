"""Policies in a real engine. What each keeps is tests/unit/test_policies.py's; here, that the engine feeds them."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside
from tests.engine.oracle import Oracle, Rule
from tests.engine.test_random import LOGIT_TOLERANCE, SELECTION_TOLERANCE


class HeavyOracle(Oracle):
    """H2O: keeps what has got most attention in all steps so far, prompt and thoughts being attended to."""

    at_once = 1  # each step's attention counts

    def gaps(self, prompt, output, rule):
        self.got = None
        return super().gaps(prompt, output, rule)

    def _forward(self, ids, positions, cache):
        result = super()._forward(ids, positions, cache)
        if self.got is None:
            self.got = [torch.zeros(len(keys)) for keys, _ in cache]  # a prefill counts for nothing
        else:
            self.got = [
                torch.cat([got, torch.zeros(1)]) + seen.sum(0)
                for got, seen in zip(self.got, self.attended, strict=True)
            ]
        return result

    def _compress(self, rule, prompt, keep, cache, recent):
        closest = float("inf")
        for layer, (keys, values) in enumerate(cache):
            end = len(keys) - rule.window
            ranked, order = self.got[layer][prompt:end].sort(descending=True)
            closest = min(closest, float((ranked[keep - 1] - ranked[keep]) / ranked[keep - 1]))
            stay = torch.cat([torch.arange(prompt), prompt + order[:keep].sort().values, torch.arange(end, len(keys))])
            cache[layer] = keys[stay], values[stay]
            self.got[layer] = self.got[layer][stay]
        return closest


class PeakOracle(Oracle):
    """Policy peak: the most attention of the newest tokens, over all that each sees, times the value's norm."""

    def _compress(self, rule, prompt, keep, cache, recent):
        closest, repeat = float("inf"), self.heads // self.kv_heads
        for layer, (keys, values) in enumerate(cache):
            end = len(keys) - rule.window
            logits = torch.einsum("rhd,nhd->hrn", recent[layer][-rule.window :], keys.repeat_interleave(repeat, 1))
            later = torch.full(logits.shape[1:], float("-inf")).triu(1 + end)
            peaks = (logits * self.dim**-0.5 + later).softmax(-1)[..., prompt:end].amax(1)
            scores = (peaks * values[prompt:end].norm(dim=-1).T.repeat_interleave(repeat, 0)).sum(0)
            ranked, order = scores.sort(descending=True)
            closest = min(closest, float((ranked[keep - 1] - ranked[keep]) / ranked[keep - 1]))
            stay = torch.cat([torch.arange(prompt), prompt + order[:keep].sort().values, torch.arange(end, len(keys))])
            cache[layer] = keys[stay], values[stay]
        return closest


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


MIXED = {"page_size": 16, "chunked_prefill_size": 16, "enable_mixed_chunk": True, "disable_overlap_schedule": True}


@pytest.mark.parametrize("shape", [{}, MIXED], ids=["overlap", "page 16, mixed"])
def test_h2o_sees_every_step(golden, tmp_path, shape):
    oracle, rule = HeavyOracle(golden.path), Rule(interval=24, window=6, ratio=3)
    rpc = RPCConfig(interval=24, window=6, ratio=3, scope="all", policy="h2o")
    prompts = [golden.prompt, golden.prompt[:-3], golden.prompt[:20]]
    with engine(golden.path, rpc, **shape) as running:
        results = running.generate(input_ids=prompts, sampling_params=greedy(150))
        assert_balanced(look_inside(running, tmp_path, [1]))
    judged = 0
    for prompt, result in zip(prompts, results, strict=True):
        receipt = result["meta_info"]["rpc"]
        assert receipt["compressions"] == (149 - 6) // 24
        assert receipt["late"] == 0
        gaps, closest = oracle.gaps(prompt, result["output_ids"], rule)
        if closest > SELECTION_TOLERANCE:
            assert max(gaps) < LOGIT_TOLERANCE, (gaps.index(max(gaps)), max(gaps), closest, receipt)
            judged += 1
    assert judged == len(prompts)
    assert max(Oracle(golden.path).gaps(prompts[0], results[0]["output_ids"], rule)[0]) > LOGIT_TOLERANCE


def test_peak_sees_the_whole_row_and_its_values(golden, tmp_path):
    """Also where a prompt comes out of the prefix cache, in pages and in chunks."""
    oracle, rule = PeakOracle(golden.path), Rule(interval=24, window=6, ratio=3)
    rpc = RPCConfig(interval=24, window=6, ratio=3, scope="all", policy="peak")
    prompts = [golden.prompt, golden.prompt[:-3], golden.prompt[:20]]
    judged = 0
    with engine(golden.path, rpc, **MIXED) as running:
        for _ in range(2):
            results = running.generate(input_ids=prompts, sampling_params=greedy(150))
            for prompt, result in zip(prompts, results, strict=True):
                receipt = result["meta_info"]["rpc"]
                assert receipt["compressions"] == (149 - 6) // 24
                gaps, closest = oracle.gaps(prompt, result["output_ids"], rule)
                if closest > SELECTION_TOLERANCE:
                    assert max(gaps) < LOGIT_TOLERANCE, (gaps.index(max(gaps)), max(gaps), closest, receipt)
                    judged += 1
        assert results[0]["meta_info"]["cached_tokens"] > 0
        assert_balanced(look_inside(running, tmp_path, [1]))
    assert judged >= 4
    assert max(Oracle(golden.path).gaps(prompts[0], results[0]["output_ids"], rule)[0]) > LOGIT_TOLERANCE


def test_random_draws_the_same_again(golden, tmp_path):
    rpc = RPCConfig(interval=24, window=6, ratio=3, scope="all", policy="random", policy_seed=5)
    with engine(golden.path, rpc) as running:
        assert running.get_server_info()["internal_states"][0]["rpc"]["config"]["policy"] == "random"
        alone = running.generate(input_ids=golden.prompt, sampling_params=greedy(150))["output_ids"]
        together = running.generate(input_ids=[golden.prompt[:9], golden.prompt], sampling_params=greedy(150))
        assert together[1]["output_ids"] == alone
        assert together[1]["meta_info"]["rpc"]["compressions"] == 5
        assert_balanced(look_inside(running, tmp_path, [1]))
    assert max(Oracle(golden.path).gaps(golden.prompt, alone, Rule(24, 6, 3))[0]) > LOGIT_TOLERANCE
