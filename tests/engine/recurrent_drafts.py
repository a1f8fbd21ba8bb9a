"""Small models with recurrent layers, and drafts for them that are right most of the time.

What a recurrent layer adds is made small, so a model without it says the same next token more often than not. Where it
says another, the step takes the states of its drafts back.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.engine import recurrent, spy
from tests.engine.speculative import AHEAD, speculating

WEIGHTS = "model.safetensors"
AHEAD_WITHOUT_A_TREE = {**AHEAD, "disable_radix_cache": True}
#: Of what recurrent layers and MLPs add to the hidden states.
SHARES = {"out_proj.weight": 0.05, "down_proj.weight": 0.02}
#: A draft turns whole heads by their position.
WHOLE_HEADS = {"partial_rotary_factor": 1.0, "rope_theta": 10000.0, "rope_type": "default"}
#: As checkpoints of Qwen3.5 have it, even those that read no images.
THREE_AXES = {"mrope_interleaved": True, "mrope_section": [3, 3, 2]}


def write_model(folder: Path, family: str, layers: int = 4) -> Path:
    """A model whose layers alternate, the recurrent ones weak, and whose attention has gates that are always half
    open."""
    folder.mkdir(exist_ok=True)
    rope = WHOLE_HEADS | (THREE_AXES if family == "qwen3_5_text" else {})
    recurrent.write_model(folder, family, layers=layers, rope_parameters=rope, partial_rotary_factor=1.0)
    weights = load_file(folder / WEIGHTS)
    for name, weight in weights.items():
        for ending, share in SHARES.items():
            if name.endswith(ending):
                weight *= share
        if name.endswith("q_proj.weight"):
            _by_head(weight)[:, 1] = 0
        elif "embed" in name:  # of length 1 in each dimension, as after a norm
            weight *= weight.shape[1] ** 0.5 / weight.norm(dim=1, keepdim=True)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    return folder


def _by_head(q_proj: torch.Tensor) -> torch.Tensor:
    """[heads, queries and gates, head dim, hidden]."""
    return q_proj.view(recurrent.SHARED["num_attention_heads"], 2, recurrent.SHARED["head_dim"], -1)


def dense_draft(model: Path, folder: Path) -> Path:
    """A draft for STANDALONE: the layers with attention of a model that `write_model` made, and no others."""
    weights, config = load_file(model / WEIGHTS), json.loads((model / "config.json").read_text())
    attending = [i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
    own = {name: weights[name] for name in ("lm_head.weight", "model.embed_tokens.weight")}
    own["model.norm.weight"] = 1 + weights["model.norm.weight"]
    for index, layer in enumerate(attending):
        of = {n.removeprefix(f"model.layers.{layer}."): w for n, w in weights.items() if f".layers.{layer}." in n}
        of |= {name: 1 + weight for name, weight in of.items() if "norm" in name}
        of["self_attn.q_proj.weight"] = _by_head(of["self_attn.q_proj.weight"])[:, 0].flatten(0, 1)
        of["self_attn.o_proj.weight"] = of["self_attn.o_proj.weight"] / 2
        wide, size = config["intermediate_size"], config["hidden_size"]
        for name, shape in (("gate", (wide, size)), ("up", (wide, size)), ("down", (size, wide))):
            of.setdefault(f"mlp.{name}_proj.weight", torch.zeros(shape))
        own |= {
            f"model.layers.{index}.{n}": w.contiguous()
            for n, w in of.items()
            if "expert" not in n and "mlp.gate.w" not in n
        }
    known = {n: config[n] for n in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")}
    known |= {n: config[n] for n in ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps")}
    known |= dict(num_hidden_layers=len(attending), tie_word_embeddings=False, rope_parameters=WHOLE_HEADS)
    transformers.Qwen3Config(**known, architectures=["Qwen3ForCausalLM"], dtype="float32").save_pretrained(folder)
    save_file(own, folder / WEIGHTS, {"format": "pt"})
    return folder


def with_mtp(model: Path, folder: Path) -> Path:
    """A model of two layers that `write_model` made, and brings along a layer for multi-token prediction, as
    checkpoints of Qwen3-Next do: its own layer with attention, which heeds no hidden states."""
    weights, config = load_file(model / WEIGHTS), json.loads((model / "config.json").read_text())
    size = config["hidden_size"]
    own = {n.replace("model.layers.1", "mtp.layers.0"): w for n, w in weights.items() if ".layers.1." in n}
    own["mtp.fc.weight"] = torch.cat([torch.eye(size), torch.zeros(size, size)], 1)
    own["mtp.norm.weight"] = weights["model.norm.weight"]
    own["mtp.pre_fc_norm_embedding.weight"] = own["mtp.pre_fc_norm_hidden.weight"] = torch.zeros(size)
    own = {name: tensor.clone() for name, tensor in own.items()}  # safetensors shares no memory
    folder.mkdir()
    save_file({**weights, **own}, folder / WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextlib.contextmanager
def verifying(*args: Any, **more: Any) -> Iterator[Any]:
    """An engine with the arguments of `speculating`; with those of `AHEAD_WITHOUT_A_TREE` it schedules ahead on a CPU
    too. SGLang does not beside a tree that takes a request's own state when it ends: by then it may be a step ahead."""
    from sglang.srt.arg_groups import mamba_hook

    with pytest.MonkeyPatch.context() as patch:
        if not more.get("disable_overlap_schedule", True):
            assert more["disable_radix_cache"]
            patch.setattr(mamba_hook, "validate_mamba_no_buffer", lambda view, architecture: None)
        with speculating(*args, **more) as running:
            yield running


def with_states_past_the_cut(*args: Any, **kwargs: Any) -> Any:
    """A scheduler that gives a request the state after all that a step accepted, though it is cut at a due date."""
    from sglang.srt.speculative import eagle_worker_common

    from sglang_rpc.memory.speculative_rows import SpeculativeRows

    cut, commit = SpeculativeRows.cut, eagle_worker_common.commit_mamba_states_after_verify
    accepted: list[torch.Tensor] = []

    def remember(self: SpeculativeRows, rows: Any, lengths: Any, lens: torch.Tensor, index: torch.Tensor) -> Any:
        accepted[:] = [lens.clone(), index.clone()]
        return cut(self, rows, lengths, lens, index)

    def past_the_cut(worker: Any, batch: Any, lens: Any, index: Any, *rest: Any, **more: Any) -> None:
        commit(worker, batch, *accepted, *rest, **more)

    SpeculativeRows.cut = remember
    eagle_worker_common.commit_mamba_states_after_verify = past_the_cut
    return spy.run_scheduler_process(*args, **kwargs)
