"""Run by test_architectures.py in a process of its own, since it gives SGLang a rank and a configuration.

Asks RPC about each of `configs`, whose layers are built on the meta device, and prints what it said as JSON: of
"registry" the names, of "early" (by the configuration) and "built" (by the layers too) each the code and the sentence
of a refusal, or "", of "unbuilt" why SGLang failed, and "named", by the name alone, of each in the table.
"""

from __future__ import annotations

import json
import logging
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sglang_rpc import RPCConfig
from sglang_rpc.contract.architectures import KIND_OF
from sglang_rpc.contract.refusals import model as refusals
from sglang_rpc.contract.refusals.facts import gather_facts
from sglang_rpc.errors import RPCError
from sglang_rpc.hooks.plain_pool import SERVED_FROM_EITHER
from sglang_rpc.startup import cpu
from tests.unit.architectures.configs import configs

warnings.simplefilter("ignore")
logging.disable(logging.ERROR)
cpu.prepare("cpu")


def one_rank(model: Path, store: Path) -> None:
    """Give this process the configuration and groups of a server's only rank."""
    from sglang.srt import runtime_context
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import bootstrap
    from sglang.srt.layers.moe.utils import initialize_moe_config
    from sglang.srt.server_args import ServerArgs

    arguments = ServerArgs(model_path=str(model), skip_tokenizer_init=True, **cpu.server_defaults())
    runtime_context.publish(
        arguments, role="scheduler", ranks=runtime_context.SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0)
    )
    bootstrap._init_parallel_groups(backend="gloo", dist_init_method=f"file://{store}", server_args=arguments, gpu_id=0)
    initialize_moe_config()
    bootstrap.init_layer_runtime(model_config=ModelConfig.from_server_args(arguments))


def instance(name: str, **attributes: Any) -> Any:
    """An object of a class of this name, with nothing else that could be read."""
    made = type(name, (), {})()
    vars(made).update(attributes)
    return made


def pool_of(model_config: Any) -> tuple[Any, str, str]:
    """KV pool, row pool and allocator of the classes that SGLang builds for such a model. Of those that RPC does not
    know nothing can be read but the name."""
    from sglang.srt.configs.hybrid_arch import mambaish_config
    from sglang.srt.mem_cache.kv_cache_builder import uses_ssm_state

    plain = "ReqToTokenPool", "TokenToKVPoolAllocator"
    recurrent = mambaish_config(model_config)
    if recurrent is not None and model_config.is_hybrid_swa:
        return instance("UnifiedHybridLinearKVPool"), "HybridReqToTokenPool", "TokenToKVPoolAllocator"
    if uses_ssm_state(model_config):
        # Draft models of configurations that say no interval have no such list.
        full = getattr(recurrent, "full_attention_layer_ids", None)
        inside = attention_pool(model_config, model_config.num_attention_layers if full is None else len(full))
        wrapped = instance("HybridLinearKVPool", full_kv_pool=inside, full_attention_layer_id_mapping={})
        return wrapped, "HybridReqToTokenPool", plain[1]
    if model_config.is_hybrid_swa and model_config.hf_config.architectures[0] not in SERVED_FROM_EITHER:
        parts = [
            instance("MHATokenToKVPool", kv_cache_layout="nhd", k_buffer=[], v_buffer=[], quant_method=None)
            for _ in range(2)
        ]
        known = dict(dtype=torch.bfloat16, layer_num=model_config.num_attention_layers)
        pool = instance("SWAKVPool", full_kv_pool=parts[0], swa_kv_pool=parts[1], **known)
        return pool, plain[0], "SWATokenToKVPoolAllocator"
    return attention_pool(model_config, model_config.num_attention_layers), *plain


def attention_pool(model_config: Any, layers: int) -> Any:
    """The pool of so many attention layers."""
    from sglang.srt.configs.model_config import is_deepseek_dsa

    if is_deepseek_dsa(model_config.hf_config):
        return instance("DSATokenToKVPool")
    known = dict(dtype=torch.bfloat16, layer_num=layers)
    if model_config.attention_arch.name != "MLA":
        return instance("MHATokenToKVPool", kv_cache_layout="nhd", **known)
    rank, rope = model_config.kv_lora_rank, model_config.qk_rope_head_dim
    return instance("MLATokenToKVPool", kv_lora_rank=rank, kv_cache_dim=rank + rope, **known)


def runner_of(model_config: Any, model: torch.nn.Module) -> Any:
    """As much of a model runner as the start-up check reads."""
    from sglang.srt.model_executor.model_runner_components.load_model_utils import resolve_sliding_window_size

    pool, rows, allocator = pool_of(model_config)
    return SimpleNamespace(
        server_args=SimpleNamespace(speculative_algorithm=None, speculative_eagle_topk=None),
        model_config=model_config,
        model=model,
        sliding_window_size=resolve_sliding_window_size(model, model_config),
        attention_chunk_size=model_config.attention_chunk_size,
        use_mla_backend=model_config.attention_arch.name == "MLA",
        decode_attention_backend_str="triton",
        prefill_attention_backend_str="triton",
        req_to_token_pool=instance(rows, _aux_cache=None),
        token_to_kv_pool_allocator=instance(allocator, get_kvcache=lambda: pool, page_size=64, _swa_req_ring=False),
    )


def answer(check: Callable[..., None], *args: Any) -> tuple[str, str]:
    """Code and sentence of the refusal; "" where there is none."""
    try:
        check(*args)
    except RPCError as error:
        return error.code, error.sentence
    return "", ""


def check_built(model_config: Any, model: torch.nn.Module) -> None:
    """As the start-up does once the pools are there."""
    refusals.refuse_model_runner(gather_facts(runner_of(model_config, model)), RPCConfig())


def main(folder: Path) -> dict[str, Any]:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.models.registry import ModelRegistry

    paths = {}
    for name, config in configs().items():
        paths[name] = folder / name.replace(" ", "_")
        paths[name].mkdir()
        (paths[name] / "config.json").write_text(json.dumps(config))
    one_rank(paths["LlamaForCausalLM"], folder / "store")
    said: dict[str, Any] = {"registry": sorted(ModelRegistry.get_supported_archs())}
    said |= {"early": {}, "built": {}, "unbuilt": {}}
    for name, path in paths.items():
        try:
            model_config = ModelConfig(str(path), trust_remote_code=False)
            with torch.device("meta"):
                kind = ModelRegistry.models[model_config.hf_config.architectures[0]]
                model = kind(config=model_config.hf_config, quant_config=None)
        except Exception:
            said["unbuilt"][name] = traceback.format_exc(limit=-2)
            continue
        said["early"][name] = answer(refusals.refuse_model_config, model_config, RPCConfig())
        said["built"][name] = answer(check_built, model_config, model)
    said["named"] = named(ModelConfig(str(paths["LlamaForCausalLM"])))
    return said


def named(model_config: Any) -> dict[str, tuple[str, str]]:
    """The answers to every architecture of the table, by its name in a configuration that tells nothing else."""
    answers = {}
    for name in KIND_OF:
        model_config.hf_config.architectures = [name]
        answers[name] = answer(refusals.refuse_model_config, model_config, RPCConfig())
    return answers


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(main(Path(scratch))))
