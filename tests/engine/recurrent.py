"""Small models with recurrent layers beside full attention. Their judge is transformers' own code, which keeps all KV.

Of what a compression evicts the judge knows only that layers with full attention see it no more. Its recurrent layers
read every token, as those of a server do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from tests.engine import windows

KINDS = ("linear_attention", "full_attention")
SHARED = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    layer_types=[*KINDS, *KINDS],
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    max_position_embeddings=2048,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
#: model_type -> how it differs.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_next": dict(
        architectures=["Qwen3NextForCausalLM"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "qwen3_5_text": dict(architectures=["Qwen3_5ForCausalLM"]),
}
#: What SGLang reads in config.json and transformers does not write.
FOR_SGLANG = dict(full_attention_interval=2, linear_num_key_heads_cpu=2, linear_num_value_heads_cpu=4)
#: The arguments of an engine that serves them on a CPU.
ON_A_CPU = dict(disable_overlap_schedule=True)


def write_model(path: Path, family: str, seed: int = 0, layers: int = 4, **more: Any) -> Path:
    """Random weights, large enough that attention is sharp, greedy tokens differ, and states remember."""
    torch.manual_seed(seed)
    alternate = dict(num_hidden_layers=layers, layer_types=[*KINDS] * (layers // 2))
    config = AutoConfig.for_model(family, **{**SHARED, **FAMILIES[family], **alternate, **more})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.normal_(-3, 1)  # of the decay: states last for some tens of tokens
            elif "linear_attn.norm" in name:
                weight.normal_(1.0, 0.3)
            elif "norm" in name:
                weight.normal_(0.0, 0.3)  # to which 1 is added
            elif "embed" in name:
                weight.normal_(0, 1.0)
            elif "q_proj" in name or "k_proj" in name:
                weight.normal_(0, 0.4)
            else:
                weight.normal_(0, 0.25)
    model.save_pretrained(path)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | FOR_SGLANG))
    return path


class Judge(windows.Judge):
    """One model's."""

    def __init__(self, path: Path):
        super().__init__(path, reach=0)

    def cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        """What the model says, token by token, with nothing evicted."""
        self.begin(len(prompt) + tokens)
        cache, output, new = self.cache(), [], prompt
        for _ in range(tokens):
            first = len(prompt) + len(output) - len(new)
            positions = torch.arange(first, first + len(new))[None]
            logits = self.model(
                torch.tensor([new]), past_key_values=cache, use_cache=True, position_ids=positions
            ).logits
            output.append(int(logits[0, -1].argmax()))
            new = output[-1:]
        return output
