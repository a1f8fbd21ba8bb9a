"""A small Qwen2 with the head dim of real models, whose weights are bfloat16 numbers: what `Oracle` computes in float32
and a GPU's kernels in bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HEAD_DIM, HEADS, KV_HEADS, HIDDEN, WIDE, LAYERS, VOCABULARY = 128, 4, 2, 512, 512, 3, 512


def write_model(path: Path, seed: int = 0) -> Path:
    """Random weights, large enough that attention is sharp."""
    made = torch.Generator().manual_seed(seed)

    def random(out: int, into: int, gain: float = 1.0) -> torch.Tensor:
        return (torch.randn(out, into, generator=made) * gain * into**-0.5).bfloat16()

    def ones() -> torch.Tensor:
        return torch.ones(HIDDEN, dtype=torch.bfloat16)

    weights = {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN, generator=made).bfloat16(),
        "model.norm.weight": ones(),
        "lm_head.weight": random(VOCABULARY, HIDDEN, 4.0),
    }
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        weights |= {
            p + "input_layernorm.weight": ones(),
            p + "post_attention_layernorm.weight": ones(),
            p + "self_attn.q_proj.weight": random(HEADS * HEAD_DIM, HIDDEN, 2.0),
            p + "self_attn.q_proj.bias": random(1, HEADS * HEAD_DIM)[0],
            p + "self_attn.k_proj.weight": random(KV_HEADS * HEAD_DIM, HIDDEN),
            p + "self_attn.k_proj.bias": random(1, KV_HEADS * HEAD_DIM)[0],
            p + "self_attn.v_proj.weight": random(KV_HEADS * HEAD_DIM, HIDDEN),
            p + "self_attn.v_proj.bias": random(1, KV_HEADS * HEAD_DIM)[0],
            p + "self_attn.o_proj.weight": random(HIDDEN, HEADS * HEAD_DIM),
            p + "mlp.gate_proj.weight": random(WIDE, HIDDEN),
            p + "mlp.up_proj.weight": random(WIDE, HIDDEN),
            p + "mlp.down_proj.weight": random(HIDDEN, WIDE),
        }
    path.mkdir(parents=True, exist_ok=True)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "max_position_embeddings": 4096,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path
