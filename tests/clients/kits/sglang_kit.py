"""SGLang's own kits out of its wheel: mixins of test methods that its own tests run against a server."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import openai
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
from sglang.test.kits.spec_server_kits import SpecLogprobKit, SpecPenaltyKit

from tests.clients.target import Target

#: What is long on two cores is shortened; nothing else of the kits is changed.
SHORTER: dict[str, Any] = {
    "abort_all_num_requests": 16,
    "abort_all_max_new_tokens": 1500,
    "pause_num_requests": 16,
    "pause_max_new_tokens": 128,
    "pause_ignore_eos": True,
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
    unittest.TestCase,
):
    """All of them in one class: the names of their tests do not collide."""


def checks(target: Target) -> dict[str, Callable[[Target], None]]:
    names = unittest.TestLoader().getTestCaseNames(Kits)
    return {name.removeprefix("test_"): partial(_run, name) for name in names}


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
