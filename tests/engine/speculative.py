"""What an engine that speculates is started with, drafts for it, and schedulers that lack a part of RPC's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.engine import spy


def drafting(model: Path, tokens: int, **more: Any) -> dict[str, Any]:
    """Arguments of an engine whose drafts come from `model`, with `tokens` rows that a request verifies in a step."""
    return {
        "speculative_algorithm": "STANDALONE",
        "speculative_draft_model_path": str(model),
        "speculative_num_steps": tokens - 1,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": tokens,
        "disable_overlap_schedule": True,
        **more,
    }


def one_layer(like: Path, folder: Path) -> Path:
    """A model of random weights with a single layer, else of the shape of `like`: what its only layer keeps, a draft
    with the same weights keeps too."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(like)
    config.num_hidden_layers, config.layer_types = 1, ["full_attention"]
    torch.manual_seed(3)
    model = transformers.Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.normal_(0, 0.15)
        # So long that the norm before the layer, which drafts of EAGLE lack, changes nothing.
        table = model.model.embed_tokens.weight
        table *= table.shape[1] ** 0.5 / table.norm(dim=1, keepdim=True)
    model.save_pretrained(folder)
    return folder


def eagle_of(model: Path, folder: Path) -> Path:
    """A draft for EAGLE of a model that `one_layer` made: it heeds no hidden states, and has the model's own layer."""
    import torch
    from safetensors.torch import load_file, save_file

    weights, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    size = config["hidden_size"]
    own = {name.removeprefix("model."): tensor for name, tensor in weights.items() if ".layers." in name}
    del own["layers.0.input_layernorm.weight"]
    own["fc.weight"] = torch.cat([torch.eye(size), torch.zeros(size, size)], 1)
    own["fc.bias"] = torch.zeros(size)
    folder.mkdir()
    save_file(own, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2ForCausalLMEagle"]}))
    return folder


def without_the_cut(*args: Any, **kwargs: Any) -> Any:
    """A scheduler whose steps run past due dates."""
    from sglang_rpc.memory.speculative_rows import SpeculativeRows

    SpeculativeRows.cut = lambda self, rows, lengths, accept_lens, accept_index: (accept_lens, accept_index)
    return spy.run_scheduler_process(*args, **kwargs)


def without_the_drafts_move(*args: Any, **kwargs: Any) -> Any:
    """A scheduler whose compressions leave the draft's KV where it is."""
    from sglang_rpc.hooks import runtime

    runtime.draft_layers = lambda scheduler: []
    return spy.run_scheduler_process(*args, **kwargs)
