"""SGLang's own kits out of its wheel: mixins of test methods that its own tests run against a server.

They are run where a CPU with a model of 135 million parameters can judge them. Whatever is left out stands below with
the reason, and a kit that a later wheel brings fails a check until it stands in one of the two lists.
"""

from __future__ import annotations

import pkgutil
import unittest
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import openai
import requests
from sglang.test import kits
from sglang.test.kits.abort_timeout_kit import AbortAllMixin
from sglang.test.kits.anthropic_messages_kit import AnthropicMessagesMixin
from sglang.test.kits.basic_api_contract_kit import BasicAPIContractMixin
from sglang.test.kits.basic_decode_correctness_kit import BasicDecodeCorrectnessMixin
from sglang.test.kits.basic_scheduler_stress_kit import BasicSchedulerStressMixin
from sglang.test.kits.ebnf_constrained_kit import EBNFConstrainedMixin
from sglang.test.kits.json_constrained_kit import JSONConstrainedMixin
from sglang.test.kits.json_mode_kit import JSONModeMixin
from sglang.test.kits.matched_stop_kit import MatchedStopMixin
from sglang.test.kits.pause_generation_kit import PauseResumeInPlaceMixin
from sglang.test.kits.regex_constrained_kit import RegexConstrainedMixin
from sglang.test.kits.spec_server_kits import SpecLogprobKit, SpecPenaltyKit, SpecSamplingMaskKit

from tests.clients.target import Target, expect

#: What is long on two cores is shortened; nothing else of the kits is changed.
SHORTER: dict[str, Any] = {
    "abort_all_num_requests": 16,
    "abort_all_max_new_tokens": 1500,
    "pause_num_requests": 16,
    "pause_max_new_tokens": 128,
    "pause_ignore_eos": True,
}

_KNOWS_TOO_LITTLE = "the small model does not know the answer"
#: Modules of sglang.test.kits -> why none of their tests is run.
KITS_LEFT_OUT = {
    "attention_unittest": "GPU kernels and runners without a server",
    "cache_hit_kit": "no test methods: helpers that measure a GPU server",
    "dsa_metadata_kit": "sparse attention, which RPC refuses",
    "eval_accuracy_kit": "downloads data sets, and needs a model that solves them",
    "fwd_occupancy_kit": "measures how busy a GPU is",
    "kl_divergence_kit": "downloads LongBench",
    "lm_eval_kit": "downloads data sets, and needs a model that solves them",
    "mmmu_vlm_kit": "models that see",
    "pd_parity_kit": "prefill and decode servers apart, which RPC refuses",
    "perf_bench_kit": "no test methods: helpers that measure a GPU server",
    "prefix_cache_branching_kit": "the prefix cache of recurrent models, which RPC refuses",
    "radix_cache_server_kit": "400 requests with prompts of thousands of tokens: too many for a CPU",
    "reasoning_kit": "needs a model that thinks, and a server with its parser",
    "spec_decoding_kit": "speculative decoding, which RPC refuses",
    "streaming_session_kit": "streaming sessions, which RPC refuses",
    "unified_radix_cache": "the prefix cache without a server",
    "unified_radix_cache_kit": "downloads GSM8K and LongBench",
    "vlm_perf_kit": "models that see",
}
#: Tests of the kits that are run -> why they are not.
TESTS_LEFT_OUT = {
    "basic_math": _KNOWS_TOO_LITTLE,
    "color_completion": _KNOWS_TOO_LITTLE,
    "concurrent_requests": f"{_KNOWS_TOO_LITTLE}: eight capitals, of which it names none",
    "count_tokens_with_system": "the model's chat template has a system message where the request has none",
    "finish_stop_str": "the small model writes no end of line in 1000 tokens, which take it four minutes",
    "json_generate": "the small model writes a number without end, and so no whole JSON in 128 tokens",
    "logprob_mixed": "log probabilities of 128 prompts of up to 2000 tokens: more than ten minutes",
    "long_prompt": "a prompt of 8000 tokens, which is longer than the model's context",
    "mix_json_and_other": "as json_generate, forty times",
}


class Kits(
    AbortAllMixin,
    AnthropicMessagesMixin,
    BasicAPIContractMixin,
    BasicDecodeCorrectnessMixin,
    BasicSchedulerStressMixin,
    EBNFConstrainedMixin,
    JSONConstrainedMixin,
    JSONModeMixin,
    MatchedStopMixin,
    PauseResumeInPlaceMixin,
    RegexConstrainedMixin,
    SpecLogprobKit,
    SpecPenaltyKit,
    SpecSamplingMaskKit,
    unittest.TestCase,
):
    """All of them in one class: the names of their tests do not collide.

    Of `spec_server_kits` these three need no speculative decoding; the others do, or a server of their own.
    """

    def run_decode(self, sampling_params: dict[str, Any]) -> None:
        """One request, as the server fixture of SpecPenaltyKit sends it."""
        body = {
            "text": "Human: Write a travel blog post to Hawaii.\n\nAssistant:",
            "sampling_params": {"max_new_tokens": 48, "temperature": 0.7, **sampling_params},
            "return_logprob": True,
            "top_logprobs_num": 5,
            "return_text_in_logprobs": True,
            "logprob_start_len": 0,
        }
        answer = requests.post(f"{self.base_url}/generate", json=body, timeout=600)
        expect(answer.status_code == 200, answer.text)


def checks(target: Target) -> dict[str, Callable[[Target], None]]:
    """Every test of the kits that is not left out, and whether the lists are complete."""
    names = [name.removeprefix("test_") for name in unittest.TestLoader().getTestCaseNames(Kits)]
    tests = {name: partial(_run, f"test_{name}") for name in names if name not in TESTS_LEFT_OUT}
    return {"every_kit_is_run_or_left_out": partial(_complete, names), **tests}


def _complete(names: list[str], target: Target) -> None:
    run = {base.__module__.rpartition(".")[2] for base in Kits.__bases__ if base.__module__.startswith(kits.__name__)}
    there = {module.name for module in pkgutil.iter_modules(kits.__path__)}
    expect(there == run | KITS_LEFT_OUT.keys(), sorted(there ^ (run | KITS_LEFT_OUT.keys())))
    expect(TESTS_LEFT_OUT.keys() <= set(names), sorted(TESTS_LEFT_OUT.keys() - set(names)))


def _run(name: str, target: Target) -> None:
    """One test method, with the attributes that the kits' host classes have. Raises what it raises."""
    host = Kits(name)
    host.base_url, host.model, host.api_key = target.url, "m", "none"
    host.served_model_name = "m"
    host.process = SimpleNamespace(poll=lambda: None)  # whether the server lives, the harness asks after every kit
    host.client = openai.Client(base_url=target.url + "/v1", api_key="none", timeout=600, max_retries=0)
    for attribute, value in SHORTER.items():
        setattr(host, attribute, value)
    host.debug()
