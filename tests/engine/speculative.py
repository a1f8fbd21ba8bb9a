"""What an engine that speculates is started with, drafts for it, and schedulers that lack a part of RPC's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang_rpc import RPCConfig
from tests.engine import engines, spy


def drafting(model: Path | None, tokens: int, **more: Any) -> dict[str, Any]:
    """Arguments of an engine whose drafts come from `model`, or from earlier text, with `tokens` rows that a request
    verifies in a step."""
    ngram = {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": tokens}
    chain = {
        "speculative_algorithm": "STANDALONE",
        "speculative_draft_model_path": str(model),
        "speculative_num_steps": tokens - 1,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": tokens,
    }
    return {**(ngram if model is None else chain), "disable_overlap_schedule": True, **more}


AHEAD = {"disable_overlap_schedule": False}


def branching(steps: int, branches: int, **more: Any) -> dict[str, Any]:
    """Arguments of a draft whose steps each go on with the best `branches` of all that it could say next."""
    return {"speculative_num_steps": steps, "speculative_eagle_topk": branches, **more}


@contextlib.contextmanager
def speculating(model: Path, rpc: RPCConfig | None, draft: Path | None, tokens: int, **more: Any) -> Iterator[Any]:
    """An engine with the arguments of `drafting`; with those of `AHEAD` it schedules ahead on a CPU too, where SGLang
    lacks no more than a gather for it. With those of `branching` it takes pages of several slots there, where SGLang
    asks which backend can attend to branches in pages of their own."""
    from sglang.srt.arg_groups import speculative_hook

    args = drafting(draft, tokens, **more)
    with pytest.MonkeyPatch.context() as patch:
        if args.get("speculative_eagle_topk", 1) > 1:
            view = speculative_hook.resolved_view
            patch.setattr(speculative_hook, "resolved_view", lambda server_args: _OfAnyPage(view(server_args)))
        if not args["disable_overlap_schedule"]:
            patch.setattr(speculative_hook, "_disable_overlap_schedule_for_cpu", lambda server_args: None)
            patch.setattr(engines._spied(), "run_scheduler_process_func", staticmethod(gathering))
        with engines.engine(model, rpc, **args) as running:
            yield running


class _OfAnyPage:
    """Resolved arguments for SGLang's checks, which ask no more of the size of a page than whether it is 1."""

    page_size = 1

    def __init__(self, view: Any):
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


def gathering(*args: Any, **kwargs: Any) -> Any:
    """A scheduler that gathers what a step leaves for the next, without the kernel that SGLang has for GPUs."""
    from sglang.srt.managers import overlap_utils

    def gather(rows: Any, *buffers: Any) -> tuple[Any, ...]:
        return tuple(None if buffer is None else buffer[rows] for buffer in buffers)

    overlap_utils.gather_spec_extras = gather
    return spy.run_scheduler_process(*args, **kwargs)


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


def as_llama(model: Path, folder: Path) -> Path:
    """A Qwen2, or its draft for EAGLE, that is called a Llama: the same layers, with biases."""
    import torch
    from safetensors.torch import load_file, save_file

    weights, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    outputs = [name for name in weights if name.endswith("o_proj.weight")]
    biases = {name.replace("weight", "bias"): torch.zeros(config["hidden_size"]) for name in outputs}
    folder.mkdir()
    save_file({**weights, **biases}, folder / "model.safetensors", {"format": "pt"})
    named = [architecture.replace("Qwen2", "Llama") for architecture in config["architectures"]]
    more = {"architectures": named, "model_type": "llama", "attention_bias": True}
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    return folder


def with_mtp(model: Path, folder: Path) -> Path:
    """A model that `one_layer` made, and brings along a layer for multi-token prediction, as MiMo's checkpoints do: its
    own, which heeds no hidden states."""
    import torch
    from safetensors.torch import load_file, save_file

    weights, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    size, mtp = config["hidden_size"], "model.mtp_layers.0"
    own = {n.replace("model.layers.0", mtp): tensor for n, tensor in weights.items() if ".layers.0." in n}
    own[f"{mtp}.input_proj.weight"] = torch.cat([torch.zeros(size, size), torch.eye(size)], 1)
    own[f"{mtp}.token_layernorm.weight"] = own[f"{mtp}.hidden_layernorm.weight"] = torch.ones(size)
    own[f"{mtp}.final_layernorm.weight"] = weights["model.norm.weight"]
    own = {name: tensor.clone() for name, tensor in own.items()}  # safetensors shares no memory
    folder.mkdir()
    save_file({**weights, **own}, folder / "model.safetensors", {"format": "pt"})
    more = {"architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    return folder


def eagle3_of(model: Path, folder: Path) -> Path:
    """A draft for EAGLE3 of random weights, which reads the hidden states before and after the model's layers. Of a
    model that reads images it has the rope."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    config = config.get("text_config", config)
    hidden, wide, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    made, layer = torch.Generator().manual_seed(1), "midlayer"
    shapes = {
        "fc": (hidden, 3 * hidden),
        "lm_head": (words, hidden),
        f"{layer}.self_attn.q_proj": (hidden, 2 * hidden),
        f"{layer}.self_attn.k_proj": (kv, 2 * hidden),
        f"{layer}.self_attn.v_proj": (kv, 2 * hidden),
        f"{layer}.self_attn.o_proj": (hidden, hidden),
        f"{layer}.mlp.gate_proj": (wide, hidden),
        f"{layer}.mlp.up_proj": (wide, hidden),
        f"{layer}.mlp.down_proj": (hidden, wide),
    }
    weights = {f"{name}.weight": 0.1 * torch.randn(shape, generator=made) for name, shape in shapes.items()}
    norms = ("norm", *(f"{layer}.{name}" for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm")))
    weights |= {f"{name}.weight": torch.ones(hidden) for name in norms}
    weights["d2t"] = torch.zeros(words, dtype=torch.int64)
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    known = {name: config[name] for name in ("hidden_size", "intermediate_size", "vocab_size", "rms_norm_eps")}
    known |= {name: config[name] for name in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")}
    known |= {name: config[name] for name in ("rope_parameters",) if "mrope_section" in config.get(name, {})}
    own = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_act": "silu"}
    own |= {"num_hidden_layers": 1, "draft_vocab_size": words, "tie_word_embeddings": False, "torch_dtype": "float32"}
    own["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [-1, 0, 1]}
    (folder / "config.json").write_text(json.dumps({**known, **own}))
    return folder


def without_the_cut(*args: Any, **kwargs: Any) -> Any:
    """A scheduler whose steps run past due dates."""
    from sglang_rpc.memory.speculative_rows import SpeculativeRows

    SpeculativeRows.cut = lambda self, rows, lengths, accept_lens, accept_index: (accept_lens, accept_index)
    return spy.run_scheduler_process(*args, **kwargs)


def launching_on_due_dates(*args: Any, **kwargs: Any) -> Any:
    """A scheduler that schedules ahead whether or not a row may have come to its date."""
    from sglang_rpc.hooks import speculative_overlap

    speculative_overlap._may_be_due = lambda runtime, batch: False
    return gathering(*args, **kwargs)


def without_accepted_queries(*args: Any, **kwargs: Any) -> Any:
    """A scheduler whose query ring gets no queries of rows that verified drafts that branch."""
    from sglang_rpc.memory.query_ring import TreeQueries

    TreeQueries.accept = lambda self, rows, positions, accept_lens, accept_index: None
    return spy.run_scheduler_process(*args, **kwargs)


def with_queries_by_position(*args: Any, **kwargs: Any) -> Any:
    """A scheduler that records of siblings, which share a position, whichever query comes last."""
    from sglang_rpc.hooks import capture

    capture.TreeQueries = lambda ring: None
    return spy.run_scheduler_process(*args, **kwargs)


def without_the_relay(*args: Any, **kwargs: Any) -> Any:
    """A scheduler whose next launch is not told how long compressed rows are."""
    from sglang_rpc.hooks import compaction

    compaction._relay = lambda runtime, compressions: None
    return gathering(*args, **kwargs)


def without_the_drafts_move(*args: Any, **kwargs: Any) -> Any:
    """A scheduler whose compressions leave the draft's KV where it is."""
    from sglang_rpc.hooks import runtime

    runtime.draft_layers = lambda scheduler: []
    return spy.run_scheduler_process(*args, **kwargs)
