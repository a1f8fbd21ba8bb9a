"""LoRA: requests of an adapter and of the base model in one batch, each compressed by its own queries.

SGLang's LoRA layers pin memory through CUDA, so there is no CPU run of this.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.engines import Golden, engine, greedy
from tests.engine.oracle import Oracle
from tests.engine.test_gpu import LOGIT_TOLERANCE
from tests.engine.test_oracle import rule_of

pytestmark = pytest.mark.gpu
RANK, ALPHA = 4, 8


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module")
def adapter(golden, tmp_path_factory):
    """Its folder, and an oracle of the model with the adapter merged in."""
    folder = tmp_path_factory.mktemp("adapter")
    oracle = Oracle(golden.path)
    torch.manual_seed(3)
    weights = {}
    for layer in range(oracle.layers):
        for name in ("q_proj", "v_proj"):
            base = f"model.layers.{layer}.self_attn.{name}"
            out_features, in_features = oracle.w[f"{base}.weight"].shape
            a, b = 0.2 * torch.randn(RANK, in_features), 0.2 * torch.randn(out_features, RANK)
            weights[f"base_model.model.{base}.lora_A.weight"] = a
            weights[f"base_model.model.{base}.lora_B.weight"] = b
            oracle.w[f"{base}.weight"] = oracle.w[f"{base}.weight"] + ALPHA / RANK * b @ a
    save_file(weights, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": str(golden.path),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, oracle


def test_an_adapter_and_the_base_model_in_one_batch(golden, adapter):
    folder, merged = adapter
    arguments = {"device": "cuda", "lora_paths": {"tuned": str(folder)}, "max_loras_per_batch": 2}
    with engine(golden.path, golden.config, **arguments) as running:
        tuned, base, again = running.generate(
            input_ids=[golden.prompt] * 3, sampling_params=greedy(230), lora_path=["tuned", None, "tuned"]
        )
    assert tuned["output_ids"] != base["output_ids"]
    for result, oracle in ((tuned, merged), (base, Oracle(golden.path)), (again, merged)):
        assert result["meta_info"]["rpc"]["compressions"] == 3
        assert max(oracle.gaps(golden.prompt, result["output_ids"], rule_of(golden))[0]) < LOGIT_TOLERANCE
