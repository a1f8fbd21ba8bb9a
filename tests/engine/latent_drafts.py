"""A model with latent attention that brings along a layer for multi-token prediction (MTP), as DeepSeek V3 does."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def with_mtp(like: Path, folder: Path) -> Path:
    """Of the model `like` its first layer, and one that adds nothing, for SGLang counts the layers; and an MTP layer
    that is the first again. So drafts are good, though it heeds no hidden states. Its experts add nothing to the one
    that is shared, for which it has the model's MLP."""
    weights, config = load_file(like / "model.safetensors"), json.loads((like / "config.json").read_text())
    first, idle, mtp = "model.layers.0.", "model.layers.1.", "model.layers.2."
    made = {name: tensor for name, tensor in weights.items() if ".layers." not in name}
    of_layer = {name.removeprefix(first): tensor for name, tensor in weights.items() if name.startswith(first)}
    for name, tensor in of_layer.items():
        made[first + name] = tensor
        made[idle + name] = torch.zeros_like(tensor) if "o_proj" in name or "down_proj" in name else tensor
        made[mtp + name.replace("mlp.", "mlp.shared_experts.")] = tensor
        if name.startswith("mlp."):
            for expert in range(config["n_routed_experts"]):
                added = torch.zeros_like(tensor) if "down_proj" in name else tensor
                made[f"{mtp}mlp.experts.{expert}.{name.removeprefix('mlp.')}"] = added
    size = config["hidden_size"]
    made[mtp + "mlp.gate.weight"] = torch.eye(size, dtype=torch.bfloat16)[: config["n_routed_experts"]]
    made[mtp + "eh_proj.weight"] = torch.cat([torch.eye(size), torch.zeros(size, size)], 1).bfloat16()
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        made[f"{mtp}{norm}.weight"] = torch.ones(size).bfloat16()
    folder.mkdir()
    made = {name: tensor.clone() for name, tensor in made.items()}  # safetensors shares no memory
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    more = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_nextn_predict_layers": 1}
    more |= {"num_hidden_layers": 2, "scoring_func": "softmax", "moe_intermediate_size": config["intermediate_size"]}
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    return folder
