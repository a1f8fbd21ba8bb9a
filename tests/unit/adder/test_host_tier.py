"""HiCache beside compressed requests, in SGLang's own tree, controller, host pool and adder, without a model.

`tests.engine.host_tier` stands in for what needs a GPU. Every KV entry's value is its logical position.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_rpc.hooks import admission
from sglang_rpc.startup import cpu
from tests.engine import host_tier
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.unit.reuse.life import PROMPT, SIZE, D, World, retract
from tests.unit.reuse.test_retracted import backups_of

MEMORY = dict(
    hicache_host_memory_mode="cache",
    hicache_io_backend="direct",
    hicache_mem_layout="layer_first",
    hicache_ratio=4.0,
    hicache_size=0,
    hicache_storage_backend=None,
    hicache_storage_prefetch_policy=None,
    hicache_write_policy="write_through",
)


class Unset:
    """Settings that nobody gave."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class Alone:
    """The settings of one rank."""

    def __getattr__(self, name: str) -> int | None:
        if name.startswith("__"):
            raise AttributeError(name)
        return {"size": 1, "rank": 0, "enabled": False}.get(name.rpartition("_")[2])


@pytest.fixture(params=[1, 16], ids=["page 1", "page 16"])
def world(request, monkeypatch, forgetful):
    """With a host tier under its tree."""
    cpu.prepare()
    host_tier.install(partial(monkeypatch.setattr, raising=False))  # SGLang imports the copy on a GPU alone
    made = World(request.param, monkeypatch, reuse="off")
    with_host_memory(made.tree, made, monkeypatch)
    yield made
    made.tree.check_hicache_events()
    made.assert_balanced()


def with_host_memory(tree: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import runtime_context
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.hybrid_cache import hybrid_pool_assembler
    from sglang.srt.mem_cache.pool_host import base
    from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

    bags = defaultdict(Unset, memory=SimpleNamespace(**MEMORY))
    monkeypatch.setattr(type(runtime_context._CONTEXT), "config_bag", lambda _, name: bags[name])
    for module in (hybrid_pool_assembler, base):
        if hasattr(module, "get_parallel"):
            monkeypatch.setattr(module, "get_parallel", Alone)
    tree.init_hicache(
        SimpleNamespace(file_storage_path=None),
        CacheInitParams(
            disable=False,
            req_to_token_pool=world.rows,
            token_to_kv_pool_allocator=world.allocator,
            page_size=world.page,
            tree_components=(ComponentType.FULL,),
        ),
    )


def leave_the_pool(world: World) -> None:
    """What the tree holds goes to host memory alone."""
    world.tree.check_hicache_events()
    world.evict()


def whole(world: World, entries: int) -> int:
    return entries // world.page * world.page


def adder(world: World, **runtime: Any) -> Any:
    from sglang.srt.managers.schedule_policy import PrefillAdder

    scheduler = Scheduler(world.page, SIZE, max_req_input_len=SIZE - 6)
    scheduler.req_to_token_pool, scheduler.token_to_kv_pool_allocator = world.rows, world.allocator
    scheduler.tree_cache = world.tree
    made = Runtime(scheduler)
    made.fence = lambda: None
    for name, value in runtime.items():
        setattr(made, name, value)
    return admission._adder_class(PrefillAdder, made)(
        world.page, world.tree, world.allocator, None, new_token_ratio=0.7, rem_input_tokens=10_000,
        rem_chunk_tokens=None,
    )  # fmt: skip


def test_of_a_compressed_request_the_prompt_alone_goes_to_host_memory_and_comes_back(world):
    thought = world.think(PROMPT, D + 30)
    assert thought.rpc.totals.compressions == 2
    leave_the_pool(world)
    req = world.new([*PROMPT, *thought.output_ids, 9])
    req.init_next_round_input(world.tree)
    assert (req.prefix_len, req.host_hit_length) == (0, whole(world, len(PROMPT)))
    admits = adder(world)
    admits.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
    assert req in admits.can_run_list
    assert req.prefix_len == whole(world, len(PROMPT))
    world.tree.ready_to_load_host_cache()
    slots = world.tree.prefix_device_indices(req)
    for buffer in (*world.pool.k_buffer, *world.pool.v_buffer):
        assert buffer[slots, 0, 0].long().tolist() == list(range(req.prefix_len))
    world.tree.unlock(req.lock)


@pytest.mark.parametrize("part", [0, 32], ids=["nothing in the pool", "a part in the pool"])
def test_a_retracted_request_is_restored_beside_the_device_part_of_its_match(world, part, monkeypatch):
    req = world.admit(world.new([*PROMPT, 7, 8, 9]))
    world.decode(req, D + 30)
    before, backups = world.held(req), backups_of(world, 2**24)
    assert retract(world, req, backups)
    leave_the_pool(world)
    if part:  # another request has loaded the beginning back
        other = world.new([*PROMPT[:part], 5])
        other.init_next_round_input(world.tree)
        loads = adder(world)
        loads.add_one_req(other, has_chunked_req=False, truncation_align_size=None)
        world.tree.ready_to_load_host_cache()
        world.tree.unlock(other.lock)
    req.init_next_round_input(world.tree)
    assert req.prefix_len == part
    assert req.host_hit_length == whole(world, len(PROMPT) + 3) - part
    admits = adder(world, backups=backups)
    admits.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
    assert req in admits.can_run_list
    assert (req.prefix_len, req.host_loaded_length) == (len(before[0]), 0)
    assert world.held(req) == before
    world.decode(req, 1)
    world.finish(req)
