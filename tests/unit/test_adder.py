"""What the pool has room for is admitted: into an empty pool, at any length and page size, and when it comes back."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from sglang.srt.managers import schedule_policy
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.mem_cache.allocator import PagedTokenToKVPoolAllocator, TokenToKVPoolAllocator
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.runtime.admission import longest
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.seams import admission, resume
from sglang_rpc.seams.requests import room_behind

POOL, CONTEXT = 320, 10_000
CONFIG = RPCConfig(interval=16, window=4, ratio=4, scope="all")


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """Settings that only a started scheduler has published."""
    monkeypatch.setattr(schedule_policy, "_use_exact_chunk_fill", lambda: False)
    monkeypatch.setattr(schedule_policy, "mamba_prefill_chunk_grid", lambda: None)
    monkeypatch.setattr(PrefillAdder, "_replay_len", lambda *args: 0)


class Pool:
    """An empty pool of POOL slots, without a tree; the parts of SGLang's scheduler that admission looks at."""

    def __init__(self, page: int):
        made = dict(dtype=torch.float32, device="cpu", kvcache=None, need_sort=False)
        self.allocator = (
            TokenToKVPoolAllocator(POOL, **made)
            if page == 1
            else PagedTokenToKVPoolAllocator(POOL, page_size=page, **made)
        )
        self.page_size = page
        scheduler = SimpleNamespace(page_size=page, max_total_num_tokens=POOL)
        self.runtime = SimpleNamespace(
            scheduler=scheduler, page_size=page, compressor=SimpleNamespace(counters=SimpleNamespace(restored=0))
        )
        self.tree = MagicMock(disable=True)
        self.tree.supports_mamba.return_value, self.tree.evictable_size.return_value = False, 0
        self.adder_class = admission._adder_class(PrefillAdder, self.runtime)

    def admits(self, req: Req) -> bool:
        adder = self.adder_class(
            self.page_size, self.tree, self.allocator, None, new_token_ratio=0.7, rem_input_tokens=10_000,
            rem_chunk_tokens=None,
        )  # fmt: skip
        adder.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
        return req in adder.can_run_list


def request(page: int, prompt: int, compressed: bool, ignore_eos: bool, generated: int = 0) -> Req:
    """Its limit is what the pool has room for, as where the request named none."""
    pool = SimpleNamespace(page_size=page, max_total_num_tokens=POOL)
    options = RequestOptions.from_custom_params(
        None if compressed else {"rpc": {"enabled": False}}, CONFIG, can_gate=False
    )
    if compressed:
        tokens = longest(CONTEXT, room_behind(pool, prompt), options)
    else:  # SGLang's own clip
        tokens = Pool(page).allocator.max_new_tokens_for_memory(
            prompt, CONTEXT, token_capacity=POOL, sliding_window_size=None, chunk_size=None
        )
    req = Req("", "", [7] * prompt, SamplingParams(max_new_tokens=tokens, ignore_eos=ignore_eos))
    req.rpc = RequestState(options)
    if not compressed:
        assert not req.rpc.active
    back(req, min(generated, tokens - 1))
    return req


def back(req: Req, generated: int) -> None:
    req.output_ids = [8] * generated
    req.full_untruncated_fill_ids = req.origin_input_ids + req.output_ids
    req.prefix_len, req.last_node, req.retracted_stain = 0, None, generated > 0


everywhere = pytest.mark.parametrize("page", [1, 4, 16])
either = pytest.mark.parametrize("compressed", [True, False])


@everywhere
@either
@pytest.mark.parametrize("ignore_eos", [True, False])
def test_on_arrival(page, compressed, ignore_eos):
    for prompt in (1, *range(14, 34)):
        assert Pool(page).admits(request(page, prompt, compressed, ignore_eos)), prompt


@everywhere
@either
def test_retracted_without_a_backup_it_is_prefilled_again_or_ended(page, compressed):
    ended = []
    for prompt in (15, 16, 17, 30, 32):
        for generated in [*range(1, POOL, 13), *range(POOL - 80, POOL)]:
            req = request(page, prompt, compressed, True, generated)
            pool = Pool(page)
            if compressed and generated > 20:
                req.rpc.totals.compressions = 1
            if resume.unresumable(pool.runtime, req):
                ended.append(generated)
            else:
                assert pool.admits(req), (prompt, generated)
    if not compressed:
        assert ended == []
    else:  # only what would outgrow the pool before a window has been recorded again
        assert min(ended) > POOL - 32 - 2 * page - CONFIG.window - CONFIG.interval


@everywhere
def test_restored_from_its_backup(page, monkeypatch):
    monkeypatch.setattr(resume, "admitted", lambda runtime, req: None)
    for prompt in (15, 16, 17, 30, 32):
        whole = request(page, prompt, True, True)
        for generated in [
            *range(1, 40),
            *range(whole.sampling_params.max_new_tokens - 40, whole.sampling_params.max_new_tokens),
        ]:
            req, pool = request(page, prompt, True, True, generated), Pool(page)
            state = req.rpc
            state.events = max(0, (generated - CONFIG.window) // CONFIG.interval)
            state.slot_since = state.due() - CONFIG.window
            state.evicted = state.events * (CONFIG.interval - CONFIG.interval // 4)
            entries = prompt + generated - 1 - state.evicted
            state.backup, state.to_restore = SimpleNamespace(tokens=entries, queries=""), state.live()
            state.reset()

            def restore(runtime, req, pool=pool, entries=entries):
                assert pool.allocator.alloc(resume.slots_needed(runtime, req)) is not None
                req.prefix_len = entries
                req.full_untruncated_fill_ids = req.full_untruncated_fill_ids[: entries + 1]
                state = req.rpc
                state.restore(state.to_restore)
                return True

            monkeypatch.setattr(resume, "restore", restore)
            assert not resume.unresumable(pool.runtime, req)
            assert pool.admits(req), (prompt, generated, entries)
