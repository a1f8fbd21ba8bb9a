"""SGLang's own arguments, and a model runner of its own config, layers and pools."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.unit.refusals.examples import GOLDENS


@pytest.fixture(scope="module")
def sglang_arguments():
    pytest.importorskip("sglang", reason="SGLang is not installed")
    from sglang_rpc.startup import cpu

    cpu.prepare()
    from sglang.srt.server_args import ServerArgs

    return ServerArgs


@pytest.fixture(scope="module")
def resolved(sglang_arguments):
    """Real arguments, resolved as a launch on this machine would."""
    from sglang_rpc.startup import cpu

    model = GOLDENS / "gqa_all_p64"
    if not model.is_dir():
        pytest.skip(f"no golden model at {model} (SGLANG_RPC_GOLDENS)")
    server_args = sglang_arguments(model_path=str(model), skip_tokenizer_init=True, **cpu.server_defaults())
    server_args.resolve_once()
    server_args.check_server_args()
    return server_args


@pytest.fixture
def model_runner(resolved, monkeypatch):
    """SGLang's own config, layers and pools, as far as they can be built without a model runner."""
    import torch
    from sglang.srt import runtime_context
    from sglang.srt.arg_groups.overrides import model_config_of
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool

    parallel = SimpleNamespace(attn_dp_size=1, attn_tp_size=2, pp_size=1)
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: parallel)
    pool = MHATokenToKVPool(8, 1, torch.float32, 2, 16, 3, "cpu", False)
    layers = [RadixAttention(4, 16, 0.25, num_kv_heads=2, layer_id=i) for i in range(3)]
    return SimpleNamespace(
        is_draft_worker=False,
        server_args=resolved,
        model_config=model_config_of(resolved),
        model=torch.nn.ModuleList(layers),
        use_mla_backend=False,
        sliding_window_size=None,
        attention_chunk_size=None,
        decode_attention_backend_str="torch_native",
        prefill_attention_backend_str="torch_native",
        req_to_token_pool=ReqToTokenPool(2, 8, "cpu", False),
        token_to_kv_pool_allocator=TokenToKVPoolAllocator(8, torch.float32, "cpu", pool, False),
    )


@pytest.fixture
def ring():
    """A query ring of which a request has a slot."""
    import torch

    from sglang_rpc.memory.query_ring import QueryRing

    made = QueryRing(layers=1, slots=2, rows=8, window=4, heads=1, head_dim=2, dtype=torch.float32, device="cpu")
    made.acquire(2)
    return made
