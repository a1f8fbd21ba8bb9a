"""Rows in SGLang's own two pools, decoded, compressed and freed: every slot is accounted for after each step."""

from __future__ import annotations

import inspect
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.hooks import window_pool
from sglang_rpc.hooks.window_pool import evict_by_position, move_window_slots
from sglang_rpc.memory.compaction import move_kept
from sglang_rpc.memory.window_slots import SlotMove
from sglang_rpc.startup import cpu
from sglang_rpc.types import Compression

WINDOW, SLOTS, WINDOW_SLOTS, ROWS = 9, 256, 192, 5


class Pools:
    """Both pools, and requests that decode in them. What lies in a slot is its token's logical position."""

    def __init__(self, page: int, interval: int, seed: int):
        from sglang.srt.mem_cache.allocator.swa import SWATokenToKVPoolAllocator
        from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
        from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
        from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

        self.page, self.interval, self.rng = page, interval, random.Random(seed)
        self.swa, self.tree_class = ComponentType.SWA, BasePrefixCache
        # Another test may have put our hook on it.
        self.evict = inspect.unwrap(BasePrefixCache.evict_sliding_windows)
        shape = dict(dtype=torch.float32, head_num=1, head_dim=1, device="cpu", page_size=page)
        self.pool = SWAKVPool(SLOTS, WINDOW_SLOTS, swa_attention_layer_ids=[0], full_attention_layer_ids=[1], **shape)
        self.allocator = SWATokenToKVPoolAllocator(
            SLOTS, WINDOW_SLOTS, page, torch.float32, "cpu", self.pool, need_sort=False
        )
        self.rows = SimpleNamespace(req_to_token=torch.zeros(ROWS, SLOTS, dtype=torch.int32))
        self.tree = SimpleNamespace(
            page_size=page,
            req_to_token_pool=self.rows,
            token_to_kv_pool_allocator=self.allocator,
            swa_retain_window=WINDOW,
            supports_prefix_sharing=lambda: True,
            swa_retain_floor=lambda req: None,
        )
        self.scheduler = SimpleNamespace(
            token_to_kv_pool_allocator=self.allocator, req_to_token_pool=self.rows, page_size=page
        )
        self.requests: list[SimpleNamespace] = []

    def add(self, row: int, prompt: int) -> SimpleNamespace:
        from sglang.srt.managers.schedule_batch import ReqKvInfo

        kv = ReqKvInfo(req_pool_idx=row)
        state = SimpleNamespace(evicted=0)
        request = SimpleNamespace(kv=kv, rpc=state, prompt=prompt, logical=[])
        self._grow(request, prompt)
        self.requests.append(request)
        return request

    def decode(self) -> None:
        """A step of all requests, after what has left their windows has been freed."""
        self.allocator.free_group_begin()
        for request in self.requests:
            length = request.kv.kv_allocated_len + request.rpc.evicted
            # As ScheduleBatch._swa_eviction_trigger asks, which counts tokens.
            if length - WINDOW >= request.kv.get_evicted_seqlen(self.swa) + self.interval:
                evict_by_position(self.evict, self.tree, request, length)
        self.allocator.free_group_end()
        for request in self.requests:
            self._grow(request, 1)

    def compress(self, request: SimpleNamespace, evicted: int, begin: int) -> None:
        """Evict any `evicted` candidates from `begin` on in the layer with full attention."""
        kv, window = request.kv, 2
        candidates = kv.kv_allocated_len - begin - window
        keep = candidates - evicted
        c = Compression(
            row=kv.req_pool_idx, generated=0, window=window, begin=begin, end=kv.kv_allocated_len, keep=keep
        )
        kept = sorted(self.rng.sample(range(candidates), keep))
        slots = self.row(request)[begin : c.end].long()
        full = self.pool.full_kv_pool
        move_kept((full.k_buffer[0],), slots, torch.tensor([kept]), candidates)
        move_window_slots(self.scheduler, request, c)
        positions = request.logical[begin:]
        request.logical[begin:] = [positions[index] for index in [*kept, *range(candidates, len(positions))]]
        kv.kv_allocated_len = kv.kv_committed_len = c.new_end
        request.rpc.evicted += evicted

    def finish(self, request: SimpleNamespace) -> None:
        """As release_kv_cache frees a row of which the tree takes nothing."""
        self.tree_class.free_kv_row(self.tree, request.kv, [(0, request.kv.kv_allocated_len)])
        request.kv.mark_kv_released()
        self.requests.remove(request)

    def row(self, request: SimpleNamespace) -> torch.Tensor:
        return self.rows.req_to_token[request.kv.req_pool_idx]

    def check(self) -> None:
        """Slots free and held add up in both pools, and every entry lies where a layer will look for it."""
        from sglang.srt.managers.scheduler_components.pool_stats_observer import (
            kv_private_swa_tokens,
            kv_private_tokens,
        )

        records = [request.kv for request in self.requests]
        full, windows = (
            sum(count(kv, self.page) for kv in records) for count in (kv_private_tokens, kv_private_swa_tokens)
        )
        assert self.allocator.full_available_size() + full == SLOTS
        assert self.allocator.swa_available_size() + windows == WINDOW_SLOTS
        mapping, held = self.pool.full_to_swa_index_mapping, []
        for request in self.requests:
            end, cursor = request.kv.kv_allocated_len, request.kv.get_evicted_seqlen(self.swa)
            slots = self.row(request)[:end].long()
            peers = mapping[slots]
            assert not peers[:cursor].any()
            assert peers[cursor:].all()
            held += peers[cursor:].tolist()
            # What the next token of a window layer sees, and what one with full attention does.
            newest = range(end + request.rpc.evicted - min(WINDOW, end), end + request.rpc.evicted)
            seen = self.pool.swa_kv_pool.k_buffer[0][peers[-WINDOW:], 0, 0]
            assert seen.tolist() == list(newest)
            assert self.pool.full_kv_pool.k_buffer[0][slots, 0, 0].tolist() == request.logical
        assert len(set(held)) == len(held)
        assert int((mapping > 0).sum()) == len(held)
        for part in (self.allocator.full_attn_allocator, self.allocator.swa_attn_allocator):
            free = part.get_all_free_pages().tolist()
            assert len(set(free)) == len(free), "a page is free twice"

    def _grow(self, request: SimpleNamespace, tokens: int) -> None:
        for _ in range(tokens):
            end = request.kv.kv_allocated_len
            lengths, row = torch.tensor([end + 1]), self.row(request)
            if self.page == 1:
                slot = self.allocator.alloc(1)
            else:
                last = row[end - 1 : end].long() if end else torch.tensor([-1])
                slot = self.allocator.alloc_decode(lengths, lengths, last)
            assert slot is not None
            row[end] = slot[0]
            position = float(end + request.rpc.evicted)
            self.pool.full_kv_pool.k_buffer[0][slot] = position
            self.pool.swa_kv_pool.k_buffer[0][self.pool.translate_loc_from_full_to_swa(slot)] = position
            request.logical.append(position)
            request.kv.kv_allocated_len = request.kv.kv_committed_len = end + 1


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    cpu.prepare()
    monkeypatch.setenv("SGLANG_SWA_EVICTION_INTERVAL", "1")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("interval", [1, 7])
@pytest.mark.parametrize("page", [1, 4, 16])  # the last is longer than the window
def test_every_slot_is_accounted_for(page, interval, seed, monkeypatch):
    monkeypatch.setenv("SGLANG_SWA_EVICTION_INTERVAL", str(interval))
    pools, events = Pools(page, interval, seed), 0
    rng = pools.rng
    for row in range(1, 4):
        pools.add(row, rng.randint(1, 20))
    for _ in range(160):
        pools.decode()
        for request in list(pools.requests):
            begin = request.prompt + rng.choice([0, 0, 3])
            most = (request.kv.kv_allocated_len - begin - WINDOW) // page  # the window stays whole
            if most > 0 and rng.random() < 0.15:
                pools.compress(request, page * rng.randint(1, most), begin)
                events += 1
            elif request.kv.kv_allocated_len > 50 or rng.random() < 0.01:
                row = request.kv.req_pool_idx
                pools.finish(request)
                pools.add(row, rng.randint(1, 20))
            pools.check()
    assert events > 10
    for request in list(pools.requests):
        pools.finish(request)
    pools.check()


def test_an_uncompressed_row_is_left_to_sglang():
    calls = []
    request = SimpleNamespace(rpc=SimpleNamespace(evicted=0))
    for other in (request, SimpleNamespace(rpc=None), SimpleNamespace()):
        evict_by_position(lambda *args, **kwargs: calls.append((args, kwargs)), "tree", other, 70, eviction_interval=3)
        assert calls.pop() == (("tree", other, 70), {"eviction_interval": 3})


def test_a_compressed_row_is_asked_at_sglangs_interval(monkeypatch):
    """SGLang asks of its tokens in every step: of the row, one slot would be due in each."""
    calls, request = [], SimpleNamespace(rpc=SimpleNamespace(evicted=30))
    for variable, asked, wanted in (("128", 1, 128), ("1", 1, 1), ("0", 1, 1), ("7", 9, 9)):
        monkeypatch.setenv("SGLANG_SWA_EVICTION_INTERVAL", variable)
        evict_by_position(lambda *args, **kw: calls.append((args[2], kw)), "tree", request, 70, eviction_interval=asked)
        assert calls.pop() == (40, {"eviction_interval": wanted})


def played(pools: Pools) -> None:
    """A row that is compressed twice, with steps between."""
    request = pools.add(1, 5)
    for _ in range(2):
        for _ in range(40):
            pools.decode()
        pools.check()
        pools.compress(request, 16, 5)
        for _ in range(3):
            pools.decode()
            pools.check()


@pytest.mark.parametrize("page", [1, 16])
def test_a_map_left_as_it_was_would_be_seen(page, monkeypatch):
    played(Pools(page, 1, 0))
    monkeypatch.setattr(window_pool, "move_slots", lambda *_: None)
    with pytest.raises(AssertionError):
        played(Pools(page, 1, 0))


@pytest.mark.parametrize("page", [1, 16])
def test_a_cursor_left_as_it_was_would_be_seen(page, monkeypatch):
    move_of = SlotMove.of
    monkeypatch.setattr(
        SlotMove,
        "of",
        lambda begin, end, gone, cursor, page: replace(move_of(begin, end, gone, cursor, page), cursor=cursor),
    )
    with pytest.raises(AssertionError):
        played(Pools(page, 1, 0))


def test_windows_counted_in_tokens_would_be_seen(monkeypatch):
    """SGLang's own count takes slots from the windows of a compressed row."""
    pools = Pools(1, 1, 0)
    monkeypatch.setitem(globals(), "evict_by_position", lambda original, *args: original(*args))
    with pytest.raises(AssertionError):
        played(pools)
