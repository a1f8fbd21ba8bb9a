"""What the start-up check reads of SGLang's own two pools, what is built of it, and what is said."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.layers import decoder_layers, kv_layer, moved_layers, pool_bytes
from sglang_rpc.contract.refusals.facts import gather_facts
from sglang_rpc.contract.refusals.model import refuse_model_runner
from sglang_rpc.contract.windows import full_slots_free
from sglang_rpc.errors import UnsupportedError
from sglang_rpc.hooks import backup_memory, unresumable
from sglang_rpc.hooks.window_pool import window_pool_of
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.memory.window_slots import WindowPool
from sglang_rpc.types import KVLayer
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler

CONFIG = RPCConfig(scope="all")
FULL, WINDOWED = 64, 48


def two_pools(page: int, full: int = FULL, windowed: int = WINDOWED):
    """SGLang's own, of so many slots, for three layers of which the second has full attention."""
    from sglang.srt.mem_cache.allocator import swa
    from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

    shape = dict(dtype=torch.float32, head_num=2, head_dim=16, device="cpu", page_size=page)
    pool = SWAKVPool(full, windowed, swa_attention_layer_ids=[0, 2], full_attention_layer_ids=[1], **shape)
    return swa.SWATokenToKVPoolAllocator(full, windowed, page, torch.float32, "cpu", pool, need_sort=False)


@pytest.fixture
def runner(model_runner):
    """Of three layers the outer ones have a window of 100 tokens before one's own."""
    for layer in (model_runner.model[0], model_runner.model[2]):
        layer.sliding_window_size = 100
    model_runner.sliding_window_size = 100
    model_runner.token_to_kv_pool_allocator = two_pools(16)
    return model_runner


def test_two_pools_are_served(runner):
    facts = gather_facts(runner)
    assert (facts.kv_pool, facts.allocator) == ("SWAKVPool", "SWATokenToKVPoolAllocator")
    assert (facts.window_layers, facts.reach, facts.window_page) == (2, 100, 16)
    assert (facts.pool_layers, facts.kv_dtype, facts.kv_layout) == (3, "float32", "nhd")
    refuse_model_runner(facts, CONFIG)
    assert window_pool_of(runner) == WindowPool(layers=2, reach=100, page=16)


def test_what_is_evicted_must_be_whole_pages(runner):
    refuse_model_runner(gather_facts(runner), replace(CONFIG, interval=256, ratio=2))
    with pytest.raises(
        UnsupportedError, match=r"of pages of 16 slots, .* evicts 125 entries \(interval 255 would do\)"
    ):
        refuse_model_runner(gather_facts(runner), replace(CONFIG, interval=250, ratio=2))


def test_other_pools_and_allocators_are_refused_by_name(runner):
    from sglang.srt.mem_cache.allocator import swa

    allocator = runner.token_to_kv_pool_allocator
    allocator._swa_req_ring = True
    with pytest.raises(UnsupportedError, match="the allocator SWATokenToKVPoolAllocator with a ring per request does"):
        refuse_model_runner(gather_facts(runner), CONFIG)
    allocator._swa_req_ring = False
    allocator.__class__ = swa.PureSWATokenToKVPoolAllocator
    with pytest.raises(UnsupportedError, match="the allocator PureSWATokenToKVPoolAllocator does not work"):
        refuse_model_runner(gather_facts(runner), CONFIG)
    allocator.__class__ = swa.SWATokenToKVPoolAllocator
    pool = allocator.get_kvcache()
    for name in ("DeepSeekV4TokenToKVPool", "UnifiedSWAKVPool"):
        pool.__class__ = type(name, (type(pool),), {})
        with pytest.raises(UnsupportedError, match=f"the KV pool {name}, which SGLang built"):
            refuse_model_runner(gather_facts(runner), CONFIG)
        pool.__class__ = type(pool).__mro__[1]
    pool.swa_kv_pool.__class__ = type("MLATokenToKVPool", (type(pool.swa_kv_pool),), {})
    with pytest.raises(UnsupportedError, match="the KV pool SWAKVPool of MHATokenToKVPool and MLATokenToKVPool, which"):
        refuse_model_runner(gather_facts(runner), CONFIG)


def test_full_attention_alone_is_moved(runner):
    pool = runner.token_to_kv_pool_allocator.get_kvcache()
    moved = moved_layers(runner, decoder_layers(runner.model))
    assert [layer.layer_id for layer in moved] == [1]
    layer = kv_layer(runner, moved[0])
    assert layer.keys.data_ptr() == pool.full_kv_pool.k_buffer[0].data_ptr()
    assert layer.values.data_ptr() == pool.full_kv_pool.v_buffer[0].data_ptr()
    with pytest.raises(AssertionError, match="layer 0 has no window, and its KV is in the pool for windows"):
        kv_layer(runner, runner.model[0])
    buffers = [*pool.full_kv_pool.k_buffer, *pool.swa_kv_pool.k_buffer]
    assert pool_bytes(pool) == 2 * sum(buffer.nbytes for buffer in buffers)


def test_all_layers_are_moved_in_one_pool(model_runner):
    model_runner.model[0].sliding_window_size = 100
    assert moved_layers(model_runner, decoder_layers(model_runner.model)) == list(model_runner.model)
    assert window_pool_of(model_runner) is None
    assert full_slots_free(model_runner.token_to_kv_pool_allocator) == 8


def test_free_slots_are_those_that_compressions_free(runner):
    assert runner.token_to_kv_pool_allocator.available_size() == WINDOWED
    assert full_slots_free(runner.token_to_kv_pool_allocator) == FULL


@pytest.mark.parametrize(
    ("never", "chosen", "said"),
    [
        (backup_memory.OWN_WINDOWS, "swa", "; leave --rpc-window-pool out"),
        (backup_memory.OWN_WINDOWS, "plain", ""),
    ],
)
def test_no_host_memory_is_set_aside_and_the_log_says_so(never, chosen, said, caplog):
    layer = KVLayer(torch.zeros(8, 1, 4), torch.zeros(8, 1, 4), torch.float32, 1.0)
    config = replace(CONFIG, host_backup_gb=4, window_pool=chosen)
    with caplog.at_level(logging.INFO):
        made = backup_memory.set_aside(config, [layer], None, None, never)
    assert made.limit == 0
    again = "a retracted request is prefilled again, uncompressed"
    assert caplog.messages == [f"RPC: no host backups are made {never}: {again}{said}"]
    caplog.clear()
    assert backup_memory.set_aside(replace(config, host_backup_gb=0), [layer], None, None, never).limit == 0
    assert caplog.messages == []


def test_a_request_that_ends_for_want_of_a_backup_is_not_told_to_ask_for_one():
    for never, named in (("", True), (backup_memory.OWN_WINDOWS, False)):
        runtime = Runtime(Scheduler(), backups=HostBackup([], 0), never_backed_up=never)
        sentence = unresumable.sentence(runtime, tokens=70, saved=False)
        assert ("--rpc-host-backup-gb" in sentence) == ("host backups in use" in sentence) == named
        assert sentence.endswith("more memory.")
