"""SGLang's own arguments and model runners, and an environment without switches."""

from __future__ import annotations

import pytest

from sglang_rpc.contract.refusals.facts import DEEPSEEK


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("SGLANG_USE_HND_KVCACHE", "SGLANG_AITER_KV_CACHE_LAYOUT", "SGLANG_USE_MLX", "SGLANG_RUST_SERVER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def latent_runner(model_runner):
    """As DeepSeek's: each layer reads the latents, or expands them."""
    import torch
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

    class Attention(torch.nn.Module):
        def __init__(self, layer_id):
            super().__init__()
            self.attn_mqa = RadixAttention(4, 40, 0.25, num_kv_heads=1, layer_id=layer_id, v_head_dim=32)
            self.attn_mha = RadixAttention(4, 24, 0.25, num_kv_heads=4, layer_id=layer_id, v_head_dim=16)

        def dispatch_attn_forward_method(self, forward_batch):
            return None

    module, _, name = DEEPSEEK.rpartition(".")
    Attention.__module__, Attention.__qualname__ = module, name
    model_runner.model = torch.nn.ModuleList([Attention(1), Attention(0)])
    model_runner.use_mla_backend = True
    pool = MLATokenToKVPool(8, 1, torch.float32, 32, 8, 2, "cpu", False)
    model_runner.token_to_kv_pool_allocator.get_kvcache = lambda: pool
    return model_runner
