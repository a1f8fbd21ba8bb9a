"""A small model with DeepSeek's latent attention (MLA), and its oracle, which never absorbs anything: it expands each
latent into keys and values of all heads, as the paper has them, and compresses those."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.engine.oracle import Oracle


@dataclass(frozen=True)
class Dims:
    """Of a head; all different, so that none is taken for another."""

    nope: int = 16
    rope: int = 8
    value: int = 12
    latent: int = 32


#: DeepSeek's own, which are all that some GPU kernels exist for.
DEEPSEEK = Dims(nope=128, rope=64, value=128, latent=512)

CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 3,  # no layer has experts
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    "moe_intermediate_size": 32,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 2,
    "n_shared_experts": 1,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-6,
    # Scaled by nothing: SGLang has no other rope for it on a CPU.
    "rope_scaling": {
        "type": "yarn",
        "factor": 1.0,
        "original_max_position_embeddings": 2048,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "rope_theta": 10000.0,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "float32",
    "vocab_size": 512,
}


def write_model(path: Path, dims: Dims = Dims(), seed: int = 0) -> Path:
    """Random weights, large enough that attention is sharp and greedy tokens differ; bfloat16 numbers, so that an
    engine in either dtype has the same ones."""
    made = torch.Generator().manual_seed(seed)
    hidden, heads, wide = CONFIG["hidden_size"], CONFIG["num_attention_heads"], CONFIG["intermediate_size"]

    def random(*shape: int, gain: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=made) * gain * shape[-1] ** -0.5).bfloat16()

    weights = {
        "model.embed_tokens.weight": torch.randn(CONFIG["vocab_size"], hidden, generator=made).bfloat16(),
        "model.norm.weight": torch.ones(hidden).bfloat16(),
        "lm_head.weight": random(CONFIG["vocab_size"], hidden, gain=4.0),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        weights |= {
            p + "input_layernorm.weight": torch.ones(hidden).bfloat16(),
            p + "post_attention_layernorm.weight": torch.ones(hidden).bfloat16(),
            p + "self_attn.q_proj.weight": random(heads * (dims.nope + dims.rope), hidden, gain=3.0),
            p + "self_attn.kv_a_proj_with_mqa.weight": random(dims.latent + dims.rope, hidden),
            p + "self_attn.kv_a_layernorm.weight": (1 + 0.1 * torch.randn(dims.latent, generator=made)).bfloat16(),
            p + "self_attn.kv_b_proj.weight": random(heads * (dims.nope + dims.value), dims.latent),
            p + "self_attn.o_proj.weight": random(hidden, heads * dims.value),
            p + "mlp.gate_proj.weight": random(wide, hidden),
            p + "mlp.up_proj.weight": random(wide, hidden),
            p + "mlp.down_proj.weight": random(hidden, wide),
        }
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    named = {
        "kv_lora_rank": dims.latent,
        "qk_nope_head_dim": dims.nope,
        "qk_rope_head_dim": dims.rope,
        "v_head_dim": dims.value,
    }
    (path / "config.json").write_text(json.dumps(CONFIG | named))
    return path


class LatentOracle(Oracle):
    def __init__(self, path: Path):
        super().__init__(path)
        config = json.loads((path / "config.json").read_text())
        self.nope, self.rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        self.latent = config["kv_lora_rank"]
        self.kv_heads = self.heads  # expanded
        self.dim, self.value_dim = self.nope + self.rope, config["v_head_dim"]
        frequency = CONFIG["rope_theta"] ** (-torch.arange(0, self.rope, 2).double() / self.rope)
        self.angles = torch.outer(torch.arange(CONFIG["max_position_embeddings"]).double(), frequency)

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """DeepSeek turns neighbouring dims, as complex numbers."""
        turn = torch.polar(torch.ones_like(self.angles), self.angles).to(torch.complex64)[positions][:, None]
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn).flatten(-2)

    def _attend(self, h: torch.Tensor, positions: torch.Tensor, p: str) -> tuple[torch.Tensor, ...]:
        q = self._linear(h, p + "q_proj").view(len(h), self.heads, self.dim)
        q = torch.cat([q[..., : self.nope], self._rotate(q[..., self.nope :], positions)], -1)
        latent = self._linear(h, p + "kv_a_proj_with_mqa")
        expanded = self._linear(self._norm(latent[:, : self.latent], p + "kv_a_layernorm.weight"), p + "kv_b_proj")
        expanded = expanded.view(len(h), self.heads, self.nope + self.value_dim)
        roped = self._rotate(latent[:, None, self.latent :], positions).expand(-1, self.heads, -1)
        return q, torch.cat([expanded[..., : self.nope], roped], -1), expanded[..., self.nope :]
