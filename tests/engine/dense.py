"""A small Qwen2 with the head dim of real models, whose weights are bfloat16 numbers: what `Oracle` computes in float32
and a GPU's kernels in bfloat16."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Dims:
    """Of a model; the head dim is `hidden / heads`."""

    hidden: int = 512
    heads: int = 4
    kv_heads: int = 2
    wide: int = 512
    layers: int = 3
    vocabulary: int = 512


def write_qwen3(path: Path, dims: Dims = Dims()) -> Path:
    """A Qwen3 with the same weights, but that its queries and keys are normalized, and no biases."""
    write_model(path, dims=dims)
    weights = load_file(path / "model.safetensors")
    weights = {name: weight for name, weight in weights.items() if not name.endswith(".bias")}
    head_dim = dims.hidden // dims.heads
    for layer in range(dims.layers):
        for norm in ("q_norm", "k_norm"):
            weights[f"model.layers.{layer}.self_attn.{norm}.weight"] = torch.ones(head_dim, dtype=torch.bfloat16)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": head_dim}
    config |= {"attention_bias": False}
    (path / "config.json").write_text(json.dumps(config))
    return path


def write_model(path: Path, seed: int = 0, dims: Dims = Dims()) -> Path:
    """Random weights, large enough that attention is sharp."""
    hidden, kv = dims.hidden, dims.kv_heads * (dims.hidden // dims.heads)
    made = torch.Generator().manual_seed(seed)

    def random(out: int, into: int, gain: float = 1.0) -> torch.Tensor:
        return (torch.randn(out, into, generator=made) * gain * into**-0.5).bfloat16()

    def ones() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    weights = {
        "model.embed_tokens.weight": torch.randn(dims.vocabulary, hidden, generator=made).bfloat16(),
        "model.norm.weight": ones(),
        "lm_head.weight": random(dims.vocabulary, hidden, 4.0),
    }
    for layer in range(dims.layers):
        p = f"model.layers.{layer}."
        weights |= {
            p + "input_layernorm.weight": ones(),
            p + "post_attention_layernorm.weight": ones(),
            p + "self_attn.q_proj.weight": random(hidden, hidden, 2.0),
            p + "self_attn.q_proj.bias": random(1, hidden)[0],
            p + "self_attn.k_proj.weight": random(kv, hidden),
            p + "self_attn.k_proj.bias": random(1, kv)[0],
            p + "self_attn.v_proj.weight": random(kv, hidden),
            p + "self_attn.v_proj.bias": random(1, kv)[0],
            p + "self_attn.o_proj.weight": random(hidden, hidden),
            p + "mlp.gate_proj.weight": random(dims.wide, hidden),
            p + "mlp.up_proj.weight": random(dims.wide, hidden),
            p + "mlp.down_proj.weight": random(hidden, dims.wide),
        }
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": dims.wide,
        "max_position_embeddings": 4096,
        "num_attention_heads": dims.heads,
        "num_hidden_layers": dims.layers,
        "num_key_value_heads": dims.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": dims.vocabulary,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path
