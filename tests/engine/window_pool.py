"""Small models that SGLang serves from a KV pool for their windows, and what such a server's slots add up to."""

from __future__ import annotations

import inspect
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from sglang_rpc import RPCConfig
from sglang_rpc.policy.budget import pages_missed
from sglang_rpc.startup import cpu
from tests.engine.engines import assert_balanced, greedy
from tests.engine.windows import Family, write_model

FAMILIES = {
    # Dense layers alone: of a mixture of experts the routing adds nothing here.
    "mellum": Family(
        "mellum", config=dict(head_dim=16, mlp_layer_types=["dense"] * 4, architectures=["MellumForCausalLM"])
    ),
    "gemma4": Family(
        "gemma4_text",
        config=dict(
            head_dim=16,
            global_head_dim=32,
            hidden_size_per_layer_input=0,
            vocab_size_per_layer_input=512,
            architectures=["Gemma4ForCausalLM"],
        ),
    ),
}
#: What SGLang makes of the configuration of a whole Gemma 4, images and all, it does not make of the language model's.
GEMMA4_AS_SGLANG_READS_IT = dict(
    head_dim=32, v_head_dim=32, global_head_dim=32, swa_head_dim=16, swa_v_head_dim=16, swa_num_key_value_heads=2
)


def write_both(folder: Path, name: str) -> tuple[Path, Path]:
    """One model of a family, as SGLang reads it and as transformers does."""
    model = write_model(folder / "model", FAMILIES[name])
    if name != "gemma4":
        return model, model
    served = Path(shutil.copytree(model, folder / "served"))
    config = json.loads((served / "config.json").read_text())
    del config["per_layer_config"]
    (served / "config.json").write_text(json.dumps(config | GEMMA4_AS_SGLANG_READS_IT))
    return served, model


def let_torch_native_serve_gemma4(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """SGLang serves a Gemma 4 with backends of GPUs alone, for its images. Returns an engine's arguments."""
    cpu.prepare("cpu")
    from sglang.srt.arg_groups import model_hook

    original = model_hook.attention_backends_of

    def as_if(view: Any) -> Any:
        asks = inspect.currentframe().f_back.f_locals.get("model_arch")
        return ("triton", "triton") if asks == "Gemma4ForCausalLM" else original(view)

    patch.setattr(model_hook, "attention_backends_of", as_if)
    return {"attention_backend": "torch_native"}


def drawn(rng: random.Random, reach: int, page: int) -> dict:
    """Options of a request that leave the windows whole and evict whole pages; in half of the cases just so."""
    window, ratio = rng.randint(2, 8), rng.choice([1.5, 2, 4])
    least = {"min_kept": reach - window} if rng.random() < 0.3 else {}
    low = rng.randint(12, 30) if least else next(p for p in range(2, 200) if int(p / ratio) + window >= reach)
    low = max(low, int(ratio) + 1) + rng.choice([0, 0, rng.randint(1, 20)])
    options = [RPCConfig(interval=p, window=window, ratio=ratio) for p in range(low, low + 4 * page + 1)]
    interval = next(option.interval for option in options if pages_missed(option, page) is None)
    return {"interval": interval, "window": window, "ratio": ratio, **least}


def generate(running, reach: int, page: int, ignore_eos: bool = True):
    """Requests with options drawn at random, and what they got."""
    rng = random.Random(5)
    shared = [rng.randrange(20, 500) for _ in range(40)]
    prompts = [
        shared[: rng.choice([17, 40])] + [rng.randrange(20, 500) for _ in range(length)] for length in range(1, 13)
    ]
    options = [{"enabled": False} if i in (3, 7) else drawn(rng, reach, page) for i in range(len(prompts))]
    lengths = [rng.randint(110, 220) for _ in prompts]
    results = running.generate(
        input_ids=prompts,
        sampling_params=[greedy(n, rpc=rpc, ignore_eos=ignore_eos) for n, rpc in zip(lengths, options, strict=True)],
        return_logprob=True,
        logprob_start_len=-1,
    )
    return prompts, options, results


def assert_both_pools_balanced(seen: dict[str, Any]) -> None:
    """The integrity equation of both pools; every slot of window layers is free or the tree's, and mapped once."""
    assert_balanced(seen)
    windows = seen["windows"]
    assert windows["free"] + windows["evictable"] == windows["total"], seen
    assert windows["protected"] == 0, seen
    assert windows["mapped"] == windows["evictable"], seen
