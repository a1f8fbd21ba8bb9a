"""An empty pool, SGLang's own adder over it, and requests that may be admitted."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import admission, resume, unresumable
from sglang_rpc.hooks.limits import capacity_after
from sglang_rpc.memory.arena import HostBytes
from sglang_rpc.memory.host_backup import Backup, HostKV
from sglang_rpc.runtime.admission import longest
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import ThinkMarkers, TokenMarker
from sglang_rpc.startup import cpu
from tests.fakes.models import ModelConfig
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler

POOL, CONTEXT = 320, 10_000
CONFIG = RPCConfig(interval=16, window=4, ratio=4, scope="all")


@dataclass(frozen=True)
class SGLang:
    schedule_policy: ModuleType
    PrefillAdder: type
    Req: type
    SamplingParams: type
    TokenToKVPoolAllocator: type
    PagedTokenToKVPoolAllocator: type


@functools.cache
def sgl() -> SGLang:
    """Imported where no other test minds: SGLang decides then whether it runs on a CPU."""
    cpu.prepare()
    from sglang.srt.managers import schedule_policy
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache import allocator
    from sglang.srt.sampling.sampling_params import SamplingParams

    return SGLang(
        schedule_policy=schedule_policy,
        PrefillAdder=schedule_policy.PrefillAdder,
        Req=Req,
        SamplingParams=SamplingParams,
        TokenToKVPoolAllocator=allocator.TokenToKVPoolAllocator,
        PagedTokenToKVPoolAllocator=allocator.PagedTokenToKVPoolAllocator,
    )


class Pool:
    """An empty pool of POOL slots, without a tree; and the parts of SGLang's scheduler that admission reads."""

    def __init__(self, page: int):
        made = dict(dtype=torch.float32, device="cpu", kvcache=None, need_sort=False)
        self.allocator = (
            sgl().TokenToKVPoolAllocator(POOL, **made)
            if page == 1
            else sgl().PagedTokenToKVPoolAllocator(POOL, page_size=page, **made)
        )
        self.page_size = page
        self.runtime = Runtime(arriving(page))
        self.tree = MagicMock(disable=True)
        self.tree.supports_mamba.return_value, self.tree.evictable_size.return_value = False, 0
        self.adder_class = admission._adder_class(sgl().PrefillAdder, self.runtime)

    def adder(self) -> Any:
        return self.adder_class(
            self.page_size, self.tree, self.allocator, None, new_token_ratio=0.7, rem_input_tokens=10_000,
            rem_chunk_tokens=None,
        )  # fmt: skip

    def admits(self, req: Any) -> bool:
        adder = self.adder()
        adder.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
        return req in adder.can_run_list


def request(page: int, prompt: int, compressed: bool, ignore_eos: bool, generated: int = 0) -> Any:
    """Its limit is what the pool has room for, as where the request named none."""
    options = RequestOptions.from_custom_params(
        None if compressed else {"rpc": {"enabled": False}}, CONFIG, knows_markers=False
    )
    if compressed:
        tokens = longest(CONTEXT, capacity_after(arriving(page), prompt), options)
    else:  # SGLang's own clip
        tokens = Pool(page).allocator.max_new_tokens_for_memory(
            prompt, CONTEXT, token_capacity=POOL, sliding_window_size=None, chunk_size=None
        )
    req = sgl().Req("", "", [7] * prompt, sgl().SamplingParams(max_new_tokens=tokens, ignore_eos=ignore_eos))
    req.rpc = RequestState(options)
    if not compressed:
        assert not req.rpc.active
    back(req, min(generated, tokens - 1))
    return req


def back(req: Any, generated: int) -> None:
    req.output_ids = [8] * generated
    req.full_untruncated_fill_ids = req.origin_input_ids + req.output_ids
    req.prefix_len, req.last_node, req.retracted_stain = 0, None, generated > 0


everywhere = pytest.mark.parametrize("page", [1, 2, 4, 16])
either = pytest.mark.parametrize("compressed", [True, False])


def leave(pool: Pool, req: Any, monkeypatch, recorded: bool = False) -> None:
    """Retracted, with a backup; `restore` as far as admission sees it."""
    state = req.rpc
    entries = state.clock.physical(len(req.output_ids) - 1, len(req.origin_input_ids))
    empty = HostBytes(())
    state.hooks.saved = state.save(
        Backup(HostKV(empty, entries), "prompt", HostKV(empty, 0), empty if recorded else None, empty)
    )
    state.reset()

    def restore(runtime, req, state, saved):
        assert pool.allocator.alloc(resume.slots_needed(runtime, req, saved)) is not None
        req.prefix_len = entries
        req.full_untruncated_fill_ids = req.full_untruncated_fill_ids[: entries + 1]
        state.restore(saved)
        return True

    monkeypatch.setattr(resume, "restore", restore)


def comes_back(pool: Pool, req: Any) -> bool:
    """Whether it is admitted again; False if it was ended instead. It never waits forever."""
    if unresumable.is_unresumable(pool.runtime, req):
        assert req.rpc.hooks.saved is None
        assert "KV pool" in req.rpc.hooks.ended
        return False
    assert req.sampling_params.max_new_tokens > len(req.output_ids)
    assert pool.admits(req), (req.origin_input_ids, req.output_ids, req.rpc)
    return True


def arriving(page: int) -> Scheduler:
    return Scheduler(page, POOL, max_req_input_len=POOL - 6, model_config=ModelConfig(CONTEXT))


START, END, WORD = 1, 2, 8
MARKERS = ThinkMarkers(TokenMarker(START), TokenMarker(END))
