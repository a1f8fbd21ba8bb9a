"""What RPC says to each architecture in SGLang's registry: the table against the start-up check, on built layers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sglang_rpc.contract import versions
from sglang_rpc.contract.architectures import KIND_OF, KINDS
from sglang_rpc.contract.refusals.model import row_of
from tests.unit.architectures.configs import VARIANTS, configs

ROOT = Path(__file__).resolve().parents[3]
#: Their modules need kernels that SGLang has for GPUs alone, and so are missing in its registry here.
FOR_GPUS_ALONE = {"FalconMambaForCausalLM", "MambaForCausalLM"}
#: What the configuration decided in `configs`, or the attention backend: the code of the refusal, or "".
DECIDED = {
    "AfmoeForCausalLM": "",
    "BeamForCausalLM": "",
    "Cohere2VisionForConditionalGeneration": "unsupported.window_not_applied",
    "DeepSeek V3 with an indexer": "unsupported.sparse_attention",
    "DeepseekV3ForCausalLM": "",
    "Exaone4ForCausalLM": "",
    "Gemma3ForConditionalGeneration": "",
    "Gemma3nForCausalLM": "unsupported.window_not_applied",
    "Gemma3nForConditionalGeneration": "unsupported.window_not_applied",
    "Gemma4ForConditionalGeneration": "",
    "Gemma4UnifiedForConditionalGeneration": "",
    "GptOssForCausalLM": "",
    "GraniteMoeSWAForCausalLM": "unsupported.window_not_applied",
    "GraniteSWAForCausalLM": "unsupported.window_not_applied",
    "Grok1ForCausalLM": "",
    "Grok1ModelForCausalLM": "",
    "IQuestLoopCoderForCausalLM": "unsupported.window_not_applied",
    "Laguna without windows": "",
    "LagunaForCausalLM": "unsupported.window_not_applied",
    "LongcatFlashForCausalLM": "",
    "MellumForCausalLM": "",
    "MiMoV2FlashForCausalLM": "",
    "MiMoV2ForCausalLM": "",
    "MistralLarge3ForCausalLM": "",
    "MuseSparkForConditionalGeneration": "",
    "OLMo 3": "unsupported.window_attention",
    "Olmo2ForCausalLM": "",
    "Spark2_5ForCausalLM": "",
    "a Grok with temperatures": "unsupported.distance_attention",
    "a Qwen2 whose configuration names a window": "",
}


@pytest.fixture(scope="module")
def said():
    """What the driver printed."""
    pytest.importorskip("sglang", reason="SGLang is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.architectures.driver"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def expected(name: str) -> str:
    """The code of the refusal in the table; "" if the model is served."""
    if name in DECIDED:
        return DECIDED[name]
    row = row_of(KIND_OF[name])
    return "" if row is None else f"unsupported.{row.name}"


def test_the_table_has_every_architecture_of_the_registry_once(said):
    names = [name for kind in KINDS for name in kind.architectures]
    assert len(names) == len(KIND_OF)
    if versions.current() is list(versions.VERSIONS.values())[-1]:
        assert set(names) == set(said["registry"]) | FOR_GPUS_ALONE
    else:
        assert set(said["registry"]) <= set(names)


def test_the_start_up_check_says_what_the_table_says(said):
    wrong = {name: code for name, (code, _) in said["built"].items() if code != expected(name)}
    assert wrong == {}


def test_every_small_model_is_built(said):
    """But for those that an older SGLang does not have; the newest has them all, by the first test."""
    unknown = {name for name, config in configs().items() if config["architectures"][0] not in said["registry"]}
    assert {name: why for name, why in said["unbuilt"].items() if name not in unknown} == {}
    assert said["built"].keys() == configs().keys() - unknown
    assert {name for name, _ in VARIANTS.values()} < said["built"].keys()


def test_nothing_is_unreadable_and_every_sentence_names_its_model(said):
    """Hybrids, too, whose pools have no attribute that RPC knows."""
    for name, (code, sentence) in said["built"].items():
        assert not code.startswith("incompatible"), (name, sentence)
        architecture = configs()[name]["architectures"][0]
        assert not code or re.search(rf"\b{architecture}\b", sentence.partition("RPC:")[0]), sentence


def by_name(name: str) -> str:
    """The code with which the name alone is refused; "" where layers or the configuration decide."""
    kind = KIND_OF[name]
    row = row_of(replace(kind, facts=kind.flags))
    return "" if row is None else f"unsupported.{row.name}"


def test_what_is_refused_early_is_refused_for_the_same_reason(said):
    early = {name: answer for name, answer in said["early"].items() if answer[0]}
    assert early == {name: said["built"][name] for name in early}
    assert {name for name in said["built"] if name in KIND_OF and by_name(name)} <= early.keys()


def test_a_name_that_decides_is_enough(said):
    """Of those that cannot be built here too: nothing but the name is known of them."""
    assert {name: code for name, (code, _) in said["named"].items()} == {name: by_name(name) for name in KIND_OF}
    for name, (code, sentence) in said["named"].items():
        assert not code or re.search(rf"^{name}\b.* does not work with RPC: .*; .*(use|start with) ", sentence), (
            sentence
        )
