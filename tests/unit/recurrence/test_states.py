"""Recurrent states beside compressed KV: where the attention layers' KV lies, what enters the tree, what is said."""

from __future__ import annotations

import logging

import pytest
import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.contract.layers import hybrid_pool, kv_layer, kv_pool
from sglang_rpc.hooks import backup_memory, backups, recurrence, tree, unresumable
from sglang_rpc.hooks.state_slots import state_slots
from sglang_rpc.runtime.request_state import RequestState
from tests.fakes import memory
from tests.fakes.batches import ScheduleBatch
from tests.fakes.models import AttentionLayer, ModelConfig, ModelRunner
from tests.fakes.requests import Req, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler

CONFIG = RPCConfig(interval=64, window=8, ratio=4, scope="all")


class HybridLinearKVPool(memory.HybridPool):
    """By this name RPC knows SGLang's."""


class UnifiedHybridLinearKVPool(memory.HybridPool):
    """A subclass of SGLang's, with slot numbers of its own."""


def pool_of(layers: int) -> memory.KVPool:
    buffers = [torch.full((4, 1, 2), float(index)) for index in range(layers)]
    return memory.KVPool(buffers, [-buffer for buffer in buffers])


def request(prompt: int = 10, evicted: int = 5, *, enabled: bool = True) -> Req:
    options = RequestOptions.from_custom_params({"rpc": {"enabled": enabled}}, CONFIG, knows_markers=False)
    state = RequestState(options)
    state.clock.evicted = evicted
    return Req(ids(range(prompt)), ids(range(7)), rpc=state)


def test_a_layer_is_found_by_its_number_among_the_attention_layers():
    inside = pool_of(2)
    pool = HybridLinearKVPool(inside, {3: 0, 7: 1})
    allocator = memory.Allocator(kvcache=pool)
    assert kv_pool(allocator) is inside
    found = kv_layer(ModelRunner(token_to_kv_pool_allocator=allocator), AttentionLayer(layer_id=7))
    assert found.keys is inside.k_buffer[1]
    assert found.values is inside.v_buffer[1]


def test_a_subclass_is_not_taken_apart():
    pool = UnifiedHybridLinearKVPool(pool_of(2), {3: 0, 7: 1})
    assert hybrid_pool(memory.Allocator(kvcache=pool)) is None
    assert kv_pool(memory.Allocator(kvcache=pool)) is pool


@pytest.mark.parametrize("evicted", [0, 5])
@pytest.mark.parametrize("states", [False, True])
def test_nothing_is_inserted_of_a_compressed_request_that_ends_beside_states(states, evicted):
    req = request(evicted=evicted)
    recurrence.keep_last_state_out(memory.Tree(states=states), req)
    assert req.skip_radix_cache_insert == (states and evicted > 0)


def test_a_request_that_rpc_does_not_know_is_left_alone():
    req = Req()
    recurrence.keep_last_state_out(memory.Tree(states=True), req)
    recurrence.track_no_state(None, batch := ScheduleBatch([req], mamba_track_mask_cpu=[True]), None)
    assert not req.skip_radix_cache_insert
    assert batch.mamba_track_mask_cpu == [True]


@pytest.mark.parametrize(
    ("states", "up_to", "evicted", "enabled", "inserted"),
    [
        (True, 8, 0, True, [8]),  # a chunk of the prompt
        (True, 10, 0, True, [10]),  # the prompt
        (True, 14, 0, True, []),  # a prefill after a retraction: the state is of 14 tokens
        (True, 14, 0, False, [14]),  # never compressed
        (True, 14, 5, True, []),
        (False, 14, 0, True, [10]),
        (False, 14, 5, True, [10]),
    ],
)
def test_a_state_enters_the_tree_only_under_the_tokens_it_is_of(states, up_to, evicted, enabled, inserted):
    calls: list[int] = []
    req = request(evicted=evicted, enabled=enabled)
    tree.insert_prompt_only(
        lambda _tree, _req, *, up_to: calls.append(up_to), memory.Tree(states=states), req, up_to=up_to
    )
    assert calls == inserted


@pytest.mark.parametrize("masks", [([True, True], None), ([True, True], [True, False]), (None, None)])
def test_no_copy_is_noted_of_a_compressed_request(masks):
    now, following = masks
    reqs = [request(evicted=0), request(evicted=5)]
    batch = ScheduleBatch(reqs, mamba_track_mask_cpu=now, mamba_track_mask_next_cpu=following)
    recurrence.track_no_state(None, batch, None)
    assert batch.mamba_track_mask_cpu == (now and [True, False])
    assert batch.mamba_track_mask_next_cpu == (following and [True, False])


def scheduler(rows: int, tokens: int, asked: int | None = None, pool=HybridLinearKVPool) -> Scheduler:
    made = Scheduler(
        token_to_kv_pool_allocator=memory.Allocator(kvcache=pool(pool_of(1), {0: 0})),
        req_to_token_pool=memory.HybridReqToTokenPool(rows, memory.StateAllocator(3 * rows)),
        max_total_num_tokens=tokens,
        model_config=ModelConfig(context_len=1024),
    )
    made.server_args.max_running_requests = asked
    return made


def test_the_log_says_when_states_bind_before_kv(caplog):
    with caplog.at_level(logging.WARNING):
        said = state_slots(scheduler(rows=4, tokens=1000), CONFIG)
    assert "12 recurrent state slots: at most 4 requests run" in said
    assert "less than 250 entries each" in said
    assert not caplog.records  # 1024 tokens hold up to 15 * 16 + 8 + 56 entries, which is more


@pytest.mark.parametrize(
    ("asked", "tokens", "warns"),
    [(None, 6400, True), (32, 6400, True), (4, 6400, False), (None, 1216, True), (None, 1212, False)],
)
def test_it_warns_where_kv_can_never_bind_for_want_of_states(caplog, asked, tokens, warns):
    with caplog.at_level(logging.WARNING):
        state_slots(scheduler(4, tokens, asked), CONFIG)
    assert [record.getMessage()[:48] for record in caplog.records] == (
        ["RPC: recurrent states bind before KV does: 12 st"] if warns else []
    )


def test_without_recurrent_layers_nothing_is_said():
    assert state_slots(scheduler(4, 1000, pool=UnifiedHybridLinearKVPool), CONFIG) == ""


def test_a_retracted_request_without_backups_says_why():
    never = backup_memory.OWN_WINDOWS
    runtime, req = Runtime(Scheduler(), never_backed_up=never), request()
    assert req.rpc is not None
    req.kv.req_pool_idx, req.kv.kv_committed_len = 1, req.rpc.clock.physical(len(req.output_ids) - 1, 10)
    assert backups.save(runtime, req, req.rpc) is None  # or it would ask for room, and count a refusal
    said = unresumable.sentence(runtime, tokens=7, saved=False)
    assert f"without a KV backup (none are made {never})" in said
