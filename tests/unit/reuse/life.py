"""The lives of requests in SGLang's own tree, pools and `Req`, without a model: what is published, and taken over.

Every KV entry's value is its logical position, so that what a row holds can be read back from the pool. A compression
keeps entries at random: which, is not these tests' question.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import own_copy, positions, reuse, rows
from sglang_rpc.hooks.scheduling import release_row
from sglang_rpc.hooks.tree import insert_prompt_only
from sglang_rpc.runtime.aliases import Aliases
from sglang_rpc.runtime.pages import ceil_align
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.totals import Counters
from sglang_rpc.types import KVLayer

P, R, T = 64, 8, 16  #: interval, window, and what an interval leaves
SIZE = 4096  #: slots
PROMPT = list(range(100, 143))
D = 2 * P + R  #: of the second compression
TAIL = 30


@dataclass(eq=False)
class Runtime:
    """RPC in a scheduler that has no model."""

    config: RPCConfig
    page_size: int
    aliases: Aliases = field(default_factory=Aliases)
    never_backed_up: str = ""
    reports: int = 0
    every_step: bool = False
    decode_server: bool = False
    speculative: Any = None
    reserve: int = 0
    stride: int = 1
    scheduler: Any = None

    def __post_init__(self) -> None:
        self.compressor = SimpleNamespace(
            counters=Counters(),
            release_slot=lambda state: None,
            reach=0,
            markers=None,
            layers=(),
            recorder=SimpleNamespace(keeps_free=False),
        )
        self.ring = SimpleNamespace(window=R, free=0)

    def fence(self) -> None:
        pass

    def report_reuse(self) -> None:
        self.reports += 1

    def report_slots(self) -> None:
        pass


class World:
    """Of one page size; requests come and go in it."""

    def __init__(self, page: int, monkeypatch: Any, **config: Any):
        from sglang.srt.managers import schedule_batch
        from sglang.srt.mem_cache import allocator, cache_init_params, common, memory_pool, unified_radix_cache
        from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

        serving = SimpleNamespace(strip_thinking_cache=False)
        monkeypatch.setattr(schedule_batch, "get_serving", lambda: serving)
        monkeypatch.setattr(common, "get_serving", lambda: serving)
        monkeypatch.setattr(common, "get_spec", lambda: SimpleNamespace(speculative_algorithm=None))
        monkeypatch.setattr(schedule_batch.Req, "rpc", None, raising=False)
        self.common, self.page = common, page
        self.voice = 1000  #: what the model says next: this, and the position of it
        shape = dict(size=SIZE, page_size=page, dtype=torch.float32, device="cpu")
        self.pool = memory_pool.MHATokenToKVPool(
            **shape, head_num=1, head_dim=1, layer_num=2, enable_memory_saver=False
        )
        self.allocator = (
            allocator.TokenToKVPoolAllocator(SIZE, torch.float32, "cpu", self.pool, False)
            if page == 1
            else allocator.PagedTokenToKVPoolAllocator(**shape, kvcache=self.pool, need_sort=False)
        )
        self.rows = memory_pool.ReqToTokenPool(size=32, max_context_len=2048, device="cpu", enable_memory_saver=False)
        self.config = RPCConfig(**dict(interval=P, window=R, ratio=4, scope="all", reuse="share") | config)
        self.rows.rpc = self.runtime = Runtime(self.config, page)
        self.tree = unified_radix_cache.UnifiedRadixCache(
            cache_init_params.CacheInitParams(
                disable=False,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=self.allocator,
                page_size=page,
                tree_components=(ComponentType.FULL,),
            )
        )
        insert = type(self.tree).checkpoint
        self.tree.checkpoint = partial(insert_prompt_only, insert, self.tree)
        reset = self.tree.reset
        self.tree.reset = lambda: reuse.forget_aliases(reset(), self.tree)
        free = self.rows.free
        self.rows.free = lambda req: (release_row(self.rows, req), free(req))
        self.total = self.allocator.available_size()
        self.runtime.scheduler = SimpleNamespace(
            token_to_kv_pool_allocator=self.allocator,
            tree_cache=self.tree,
            req_to_token_pool=self.rows,
            max_total_num_tokens=SIZE,
        )
        self.runtime.compressor.layers = [
            KVLayer(k, v, torch.float32, 1.0) for k, v in zip(self.pool.k_buffer, self.pool.v_buffer, strict=True)
        ]
        self.request_class = _hooked(schedule_batch.Req)

    def new(self, text: list[int], rpc: dict[str, Any] | None = None, **given: Any) -> Any:
        """A request as it is queued: its state attached, what it can take over taken."""
        from sglang.srt.sampling.sampling_params import SamplingParams

        given.setdefault("logprob_start_len", -1)
        start = given.pop("logprob_start_len")
        req = self.request_class("rid", "", array("q", text), SamplingParams(max_new_tokens=1000), **given)
        req.logprob_start_len = start
        options = RequestOptions.from_custom_params({"rpc": rpc} if rpc else None, self.config, knows_markers=False)
        req.rpc = RequestState(options)
        reuse.take_over(self.runtime, req)
        return req

    def admit(self, req: Any) -> Any:
        """Match it, lock what is matched, and prefill the rest, as SGLang does."""
        req.init_next_round_input(self.tree)
        req.extend_end = len(req.full_untruncated_fill_ids)
        req.lock = self.tree.lock(req.last_node)
        matched = req.prefix_len
        prefix = self.tree.prefix_device_indices(req) if matched else torch.empty(0, dtype=torch.int64)
        self.rows.alloc([req])
        needed = ceil_align(req.extend_end, self.page) - ceil_align(matched, self.page)
        slots = self.allocator.alloc(needed)[: req.extend_end - matched]
        self.rows.write((req.kv.req_pool_idx, slice(0, req.extend_end)), torch.cat([prefix, slots]).to(torch.int32))
        ids = torch.tensor(req.full_untruncated_fill_ids[matched:])
        batch = SimpleNamespace(
            reqs=[req],
            req_to_token_pool=self.rows,
            prefill_input_ids_cpu=ids,
            orig_seq_lens=torch.tensor([req.extend_end], dtype=torch.int32),
        )
        reuse.count_reuse(None, batch)  # raises if a virtual id is about to be computed
        positions.count_logically(None, batch)
        req.computed = ids.tolist()
        logical = int(batch.orig_seq_lens[0])
        self._write(slots, torch.arange(logical - len(slots), logical))
        req.kv.kv_committed_len = req.kv.kv_allocated_len = req.extend_end
        self.common.checkpoint_kv_cache(req, self.tree)
        req.generated = 0
        return req

    def decode(self, req: Any, tokens: int) -> None:
        """Generate `tokens`; the newest has no entry yet. Compressions at their due dates."""
        for _ in range(tokens):
            logical = len(reuse.text_of(req)) + len(req.output_ids)
            if len(req.output_ids) > 0:  # the entry of the newest
                end = req.kv.kv_committed_len
                row = self.rows.req_to_token[req.kv.req_pool_idx]
                slot = self.allocator.alloc(self.page)[0] if end % self.page == 0 else row[end - 1] + 1
                row[end] = slot
                self._write(slot[None].long(), torch.tensor([logical - 1]))
                req.kv.kv_committed_len = req.kv.kv_allocated_len = end + 1
                req.generated += 1
                generated = rows.generated(req, req.rpc)
                due = req.rpc.active and generated >= req.rpc.due(req.rpc.clock.events)
                if due and (not req.rpc.shares_region or own_copy.make(self.runtime, req, req.rpc)):
                    self._compress(req, generated, (generated - R) // P)
            req.output_ids.append(self.voice + logical)

    def _compress(self, req: Any, generated: int, dates: int) -> None:
        prompt, end, keep = req.rpc.front(len(req.origin_input_ids)), req.kv.kv_committed_len, dates * T
        chosen = torch.randperm(end - R - prompt)[:keep].sort().values + prompt
        row = self.rows.req_to_token[req.kv.req_pool_idx].long()
        source, target = torch.cat([chosen, torch.arange(end - R, end)]), torch.arange(prompt, prompt + keep + R)
        for buffer in (*self.pool.k_buffer, *self.pool.v_buffer):
            buffer[row[target]] = buffer[row[source]].clone()
        first_free = ceil_align(len(target) + prompt, self.page)
        if first_free < end:
            self.tree.free_kv_row(req.kv, [(first_free, end)])
        evicted = end - prompt - len(target)
        req.rpc.clock.evict(evicted, generated)
        req.rpc.clock.pass_dates(dates)
        req.rpc.totals.compressions += 1
        req.kv.kv_committed_len = req.kv.kv_allocated_len = end - evicted

    def finish(self, req: Any) -> None:
        from sglang.srt.managers.schedule_batch import FINISH_LENGTH

        req.finished_reason = FINISH_LENGTH(len(req.output_ids))
        req.finished_len = len(req.output_ids)
        self.common.release_kv_cache(req, self.tree, checkpoint=True)

    def think(self, text: list[int], tokens: int, **given: Any) -> Any:
        """A whole life."""
        req = self.admit(self.new(text, **given))
        self.decode(req, tokens)
        req.left = self.held(req)
        self.finish(req)
        return req

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """Of each layer's keys and values."""
        return (*self.pool.k_buffer, *self.pool.v_buffer)

    def held(self, req: Any) -> list[list[int]]:
        """Logical positions that its row holds, of each layer's keys and values."""
        slots = self.rows.req_to_token[req.kv.req_pool_idx, : req.kv.kv_committed_len].long()
        return [b[slots, 0, 0].long().tolist() for b in (*self.pool.k_buffer, *self.pool.v_buffer)]

    def evict(self) -> None:
        """Empty the tree as far as nobody holds it."""
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        self.tree.evict(EvictParams(num_tokens=10**6))

    def assert_balanced(self) -> None:
        """The integrity equation of an idle server."""
        assert self.allocator.available_size() + self.tree.evictable_size() == self.total
        self.tree.sanity_check()

    def _write(self, slots: torch.Tensor, values: torch.Tensor) -> None:
        for buffer in (*self.pool.k_buffer, *self.pool.v_buffer):
            buffer[slots] = values.float()[:, None, None]


def _hooked(request_class: type) -> type:
    class Hooked(request_class):  # type: ignore[misc, valid-type]
        def init_next_round_input(self, tree_cache: Any = None, cow_mamba: bool | None = None) -> None:
            super().init_next_round_input(tree_cache, cow_mamba)
            reuse.real_ids_if_evicted(None, self, tree_cache, cow_mamba)

    return Hooked


def output(req: Any) -> list[int]:
    return list(req.output_ids)


def retract(world: World, req: Any, backups: Any) -> bool:
    """SGLang's retraction, with `backups` to save the row in; whether the request can come back."""
    from sglang_rpc.hooks import resume
    from tests.fakes.scheduler import Scheduler

    runtime = world.runtime
    runtime.backups, runtime.fence, runtime.report_backups = backups, lambda: None, lambda: None
    runtime.scheduler = Scheduler(page_size=world.page, max_total_num_tokens=SIZE, req_to_token_pool=world.rows)

    def release(*, req: Any, **_: Any) -> bool:
        world.common.release_kv_cache(req, world.tree, checkpoint=False)
        req.reset_for_retract()
        req.rpc.reset()
        return True

    return resume.back_up(release, req=req, req_to_token_pool=world.rows)


def whole(world, entries: int) -> int:
    """Entries in whole pages."""
    return entries // world.page * world.page
