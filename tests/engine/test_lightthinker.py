"""Policy lightthinker in a real engine: a model of random weights, that a logit bias makes write gist tokens often,
judged token by token by a decode loop that drops each thought's entries."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine.engines import Golden, assert_balanced, engine, look_inside
from tests.engine.oracle import Oracle

torch.set_num_threads(1)

GISTS, RESUME = [91, 92], 99
BIAS = {"91": 6.5, "92": 6.5, "99": 4.5}  # about a third, a third and a twentieth of all tokens
#: Of the log probability of a sampled token: float32 in another order of summation.
TOLERANCE = 2e-3
TOKENS = 160


class Forgetful(Oracle):
    """Shares no code with the package; what it drops it finds by looking at the tail of the text."""

    @torch.inference_mode()
    def logprobs(self, prompt: list[int], output: list[int], forgets: bool = True) -> tuple[list[float], int]:
        """Of each token of `output` under the bias; and how many entries are dropped before the last one's."""
        bias = torch.zeros(len(self.w["lm_head.weight"]))
        for token, value in BIAS.items():
            bias[int(token)] = value
        empty = torch.empty(0, self.kv_heads, self.dim)
        cache = [(empty, empty) for _ in range(self.layers)]
        logits, _ = self._forward(torch.tensor(prompt), torch.arange(len(prompt)), cache)
        found, first, dropped, behind = [], len(prompt), 0, -1  # `first`: cache entry where the thought begins
        for step, token in enumerate(output):
            found.append(float((logits[-1] + bias).log_softmax(-1)[token]))
            logits, _ = self._forward(torch.tensor([token]), torch.tensor([len(prompt) + step]), cache)
            held = len(cache[0][0])
            if step == behind and token == RESUME:
                first = held
            if forgets and held - first >= len(GISTS) and output[step - len(GISTS) + 1 : step + 1] == GISTS:
                last = held - len(GISTS)
                for layer, pair in enumerate(cache):
                    cache[layer] = tuple(torch.cat([part[:first], part[last:]]) for part in pair)
                dropped += last - first if step + 1 < len(output) else 0
                first, behind = len(cache[0][0]), step + 1
        return found, dropped


def sampling(tokens: int = TOKENS, **more):
    params = {"temperature": 1.0, "max_new_tokens": tokens, "ignore_eos": True, "logit_bias": BIAS}
    return {**params, "custom_params": {"rpc": {}}, **more}  # each wants its receipt


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


def rpc(**others) -> RPCConfig:
    return RPCConfig(policy="lightthinker", gist_tokens=GISTS, gist_resume=RESUME, scope="all", **others)


def prompts(golden):
    return [golden.prompt, golden.prompt[:-3], golden.prompt[:20], [*golden.prompt[:16], 5]]


def generate(running, golden, **more):
    params = sampling(**more)
    results = running.generate(
        input_ids=prompts(golden), sampling_params=params, return_logprob=True, logprob_start_len=-1
    )
    for result in results:
        result["logprobs"] = [value for value, *_ in result["meta_info"]["output_token_logprobs"]]
    return results


def furthest(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


def test_what_follows_never_sees_a_thought_that_has_its_gists(golden, tmp_path, monkeypatch):
    """Overlap, pages of 16, and a request retracted every third step, which comes back with the KV it had."""
    monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    oracle, thoughts, retractions = Forgetful(golden.path), 0, 0
    with engine(golden.path, rpc(), page_size=16) as running:
        results = generate(running, golden)
        assert_balanced(look_inside(running, tmp_path, [1]))
        for prompt, result in zip(prompts(golden), results, strict=True):
            receipt, output = result["meta_info"]["rpc"], result["output_ids"]
            expected, dropped = oracle.logprobs(prompt, output)
            assert furthest(result["logprobs"], expected) < TOLERANCE, receipt
            # A thought whose last gist is the last entry may or may not have been evicted before the end was known.
            assert receipt["evicted"] == receipt["generated"] - receipt["held"] <= dropped
            assert receipt["evicted"] >= oracle.logprobs(prompt, output[:-1])[1]
            assert receipt["late"] == receipt["early"] == 0
            assert receipt["restored"] >= receipt["retractions"] - 1
            thoughts, retractions = thoughts + receipt["compressions"], retractions + receipt["retractions"]
        assert thoughts > 8
        assert retractions > 4
        whole, _ = oracle.logprobs(prompts(golden)[0], results[0]["output_ids"], forgets=False)
        assert furthest(results[0]["logprobs"], whole) > TOLERANCE, "the judge can't tell"

        # The end comes with the last gist; a request may be left alone, and has no budget to choose.
        for result in generate(running, golden, stop_token_ids=[GISTS[-1]]):
            assert result["output_ids"][-1] == GISTS[-1] or len(result["output_ids"]) == TOKENS
        off = generate(running, golden, custom_params={"rpc": {"enabled": False}})
        for prompt, result in zip(prompts(golden), off, strict=True):
            assert furthest(result["logprobs"], oracle.logprobs(prompt, result["output_ids"], forgets=False)[0]) < 2e-3
        with pytest.raises(ValueError, match=r"custom_params\.rpc\.ratio has no meaning here"):
            running.generate(input_ids=golden.prompt, sampling_params=sampling(custom_params={"rpc": {"ratio": 2}}))
        assert_balanced(look_inside(running, tmp_path, [1]))


def test_a_row_prefilled_again_in_chunks_loses_its_thoughts_when_it_is_whole(golden, tmp_path, monkeypatch):
    """Nothing is backed up; a re-prefill is cut into chunks of 16, between which the row must be left alone."""
    monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    monkeypatch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
    oracle, late = Forgetful(golden.path), 0
    with engine(golden.path, rpc(host_backup_gb=0), chunked_prefill_size=16, enable_mixed_chunk=True) as running:
        results = generate(running, golden)
        assert_balanced(look_inside(running, tmp_path, [1]))
    for prompt, result in zip(prompts(golden), results, strict=True):
        receipt, output = result["meta_info"]["rpc"], result["output_ids"]
        dropped = receipt["generated"] - receipt["held"]
        assert oracle.logprobs(prompt, output[:-1])[1] <= dropped <= oracle.logprobs(prompt, output)[1]
        assert receipt["restored"] == 0
        assert receipt["evicted"] >= dropped
        late += receipt["late"]
    assert late > 4
