"""The query ring's share of SGLang's memory budget."""

import pytest
import torch

from sglang_rpc.backends.base import SCRATCH_BYTES
from sglang_rpc.config import RPCConfig
from sglang_rpc.hooks import query_slots
from tests.fakes.memory import Allocator, KVPool
from tests.fakes.models import AttentionLayer, KVCacheConfigurator, ModelRunner, server_args


def configurator(config: RPCConfig | None, device: str = "cuda", draft: bool = False) -> KVCacheConfigurator:
    return KVCacheConfigurator(server_args(config), device, draft)


@pytest.fixture(autouse=True)
def two_layers(monkeypatch):
    layer = AttentionLayer(tp_q_head_num=3, qk_head_dim=5)
    monkeypatch.setattr(query_slots, "decoder_layers", lambda model: [layer, layer])


AVAILABLE = 10**10


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (configurator(RPCConfig()), AVAILABLE // 100 + SCRATCH_BYTES),
        (configurator(RPCConfig(query_slots=7, window=4)), 8 * (2 * 4 * 3 * 5 * 2) + SCRATCH_BYTES),
    ],
    ids=["1 %", "as many slots as asked for, and the dummy slot"],
)
def test_what_rpc_takes_comes_out_of_the_pools_memory(given, taken):
    assert query_slots.leave_room(AVAILABLE, given, 80) == AVAILABLE - taken


@pytest.mark.parametrize(
    "given",
    [configurator(None), configurator(RPCConfig(), device="cpu"), configurator(RPCConfig(), draft=True)],
    ids=["off", "cpu", "draft"],
)
def test_elsewhere_the_pool_is_as_large_as_sglangs(given):
    assert query_slots.leave_room(AVAILABLE, given, 80) is None


@pytest.mark.parametrize("slot_bytes", [10, 999_999, 10**6, 10**7])
def test_the_ring_with_its_dummy_slot_takes_no_more_than_its_share(slot_bytes):
    # 1 % of the pool, not of the budget; and at least one slot, however small the pool is.
    pool_bytes = 10**8
    pool = KVPool(k_buffer=[torch.empty(pool_bytes, dtype=torch.uint8, device="meta")])
    runner = ModelRunner("cuda", token_to_kv_pool_allocator=Allocator(kvcache=pool))
    slots = query_slots.count_slots(RPCConfig(), runner, 10**9, slot_bytes)
    assert slots == 1 or (slots + 1) * slot_bytes <= pool_bytes // 100 < (slots + 2) * slot_bytes
