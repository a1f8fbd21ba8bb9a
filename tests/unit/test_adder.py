"""What the pool has room for is admitted: into an empty pool, at any length and page size, and when it comes back."""

from __future__ import annotations

import functools
import random
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import admission, backups, resume, unresumable
from sglang_rpc.hooks.limits import capacity_after, fit_to_pool, refit, refuse_prompt
from sglang_rpc.policy.lightthinker import Gists, Thoughts
from sglang_rpc.runtime.admission import Forecast, longest
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import SegmentTracker, ThinkMarkers, TokenMarker
from sglang_rpc.startup import cpu
from sglang_rpc.types import NEVER

POOL, CONTEXT = 320, 10_000
CONFIG = RPCConfig(interval=16, window=4, ratio=4, scope="all")


@functools.cache
def sgl() -> SimpleNamespace:
    """Of SGLang, imported where no other test minds: it decides then whether it runs on a CPU."""
    cpu.prepare()
    from sglang.srt.managers import schedule_policy
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache import allocator
    from sglang.srt.sampling.sampling_params import SamplingParams

    return SimpleNamespace(
        schedule_policy=schedule_policy,
        PrefillAdder=schedule_policy.PrefillAdder,
        Req=Req,
        SamplingParams=SamplingParams,
        TokenToKVPoolAllocator=allocator.TokenToKVPoolAllocator,
        PagedTokenToKVPoolAllocator=allocator.PagedTokenToKVPoolAllocator,
    )


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """Settings that only a started scheduler has published."""
    monkeypatch.setattr(sgl().schedule_policy, "_use_exact_chunk_fill", lambda: False)
    monkeypatch.setattr(sgl().schedule_policy, "mamba_prefill_chunk_grid", lambda: None)
    monkeypatch.setattr(sgl().PrefillAdder, "_replay_len", lambda *args: 0)


class Pool:
    """An empty pool of POOL slots, without a tree; the parts of SGLang's scheduler that admission looks at."""

    def __init__(self, page: int):
        made = dict(dtype=torch.float32, device="cpu", kvcache=None, need_sort=False)
        self.allocator = (
            sgl().TokenToKVPoolAllocator(POOL, **made)
            if page == 1
            else sgl().PagedTokenToKVPoolAllocator(POOL, page_size=page, **made)
        )
        self.page_size = page
        scheduler = SimpleNamespace(page_size=page, max_total_num_tokens=POOL)
        self.runtime = SimpleNamespace(
            scheduler=scheduler,
            page_size=page,
            compressor=SimpleNamespace(counters=SimpleNamespace(restored=0)),
            backups=SimpleNamespace(used=0, limit=0),
        )
        self.tree = MagicMock(disable=True)
        self.tree.supports_mamba.return_value, self.tree.evictable_size.return_value = False, 0
        self.adder_class = admission._adder_class(sgl().PrefillAdder, self.runtime)

    def admits(self, req: Any) -> bool:
        adder = self.adder_class(
            self.page_size, self.tree, self.allocator, None, new_token_ratio=0.7, rem_input_tokens=10_000,
            rem_chunk_tokens=None,
        )  # fmt: skip
        adder.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
        return req in adder.can_run_list


def request(page: int, prompt: int, compressed: bool, ignore_eos: bool, generated: int = 0) -> Any:
    """Its limit is what the pool has room for, as where the request named none."""
    pool = SimpleNamespace(page_size=page, max_total_num_tokens=POOL)
    options = RequestOptions.from_custom_params(
        None if compressed else {"rpc": {"enabled": False}}, CONFIG, knows_markers=False
    )
    if compressed:
        tokens = longest(CONTEXT, capacity_after(pool, prompt), options)
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
        for generated in [*range(1, POOL, 29), *range(POOL - 80, POOL, 3)]:
            req = request(page, prompt, compressed, True, generated)
            pool = Pool(page)
            if compressed and generated > 20:
                req.rpc.totals.compressions = 1
            if unresumable.is_unresumable(pool.runtime, req):
                ended.append(generated)
            else:
                assert pool.admits(req), (prompt, generated)
    if not compressed:
        assert ended == []
    else:  # only what would outgrow the pool before a window has been recorded again
        assert min(ended) > POOL - 32 - 2 * page - CONFIG.window - CONFIG.interval


def leave(pool: Pool, req: Any, monkeypatch, recorded: bool = False) -> None:
    """Retracted, with a backup; `restore` as far as admission sees it."""
    state = req.rpc
    entries = state.clock.physical(len(req.output_ids) - 1, len(req.origin_input_ids))
    state.hooks.saved = state.save(SimpleNamespace(tokens=entries, queries="" if recorded else None))
    state.reset()

    def restore(runtime, req):
        assert pool.allocator.alloc(resume.slots_needed(runtime, req)) is not None
        req.prefix_len = entries
        req.full_untruncated_fill_ids = req.full_untruncated_fill_ids[: entries + 1]
        req.rpc.restore(req.rpc.hooks.saved)
        return True

    monkeypatch.setattr(resume, "restore", restore)


@pytest.fixture
def forgetful(monkeypatch):
    def forget(runtime, req):
        req.rpc.hooks.saved = None

    monkeypatch.setattr(backups, "forget", forget)
    monkeypatch.setattr(resume, "admitted", lambda runtime, req: None)


def comes_back(pool: Pool, req: Any) -> bool:
    """Whether it is admitted again; False if it was ended instead. It never waits forever."""
    if unresumable.is_unresumable(pool.runtime, req):
        assert req.rpc.hooks.saved is None and "KV pool" in req.rpc.hooks.ended
        return False
    assert req.sampling_params.max_new_tokens > len(req.output_ids)
    assert pool.admits(req), (req.origin_input_ids, req.output_ids, req.rpc)
    return True


@everywhere
def test_restored_from_its_backup(page, monkeypatch, forgetful):
    for prompt in (15, 16, 17, 30, 32):
        most = request(page, prompt, True, True).sampling_params.max_new_tokens
        for generated in [*range(1, 40, 3), *range(most - 40, most, 3)]:
            req, pool = request(page, prompt, True, True, generated), Pool(page)
            state = req.rpc
            state.clock.events = max(0, (generated - CONFIG.window) // CONFIG.interval)
            state.recording.since = state.due(state.clock.events) - CONFIG.window
            state.clock.evicted = state.clock.events * (CONFIG.interval - CONFIG.interval // 4)
            leave(pool, req, monkeypatch, recorded=True)
            assert comes_back(pool, req), (prompt, generated)


# --- lengths on arrival -----------------------------------------------------------------------------------------

#: Not due before a request of SGLang's own limit has ended.
SELDOM = RPCConfig(interval=4096, window=32, scope="all")


def arriving(page: int) -> SimpleNamespace:
    return SimpleNamespace(
        page_size=page,
        max_total_num_tokens=POOL,
        max_req_input_len=POOL - 6,
        max_new_tokens_limit=None,
        model_config=SimpleNamespace(context_len=CONTEXT),
    )


@everywhere
def test_what_sglang_serves_uncompressed_is_not_refused(page):
    options = RequestOptions.from_custom_params(None, SELDOM, knows_markers=False)
    for prompt in (1, 15, 16, 17, 20, 32, 288):
        req = request(page, prompt, False, False)
        served = req.sampling_params.max_new_tokens
        req.rpc = RequestState(options)
        fit_to_pool(arriving(page), req, req.rpc, served, 0)
        assert req.sampling_params.max_new_tokens == served and (served == 0 or Pool(page).admits(req))
        fit_to_pool(arriving(page), req, req.rpc, None, 0)
        assert req.sampling_params.max_new_tokens >= served


@everywhere
@pytest.mark.parametrize("tokens", [0, 1])
def test_a_prompt_is_refused_or_admitted(page, tokens):
    refused = []
    for prompt in range(POOL - 3 * page - 8, POOL - 6):
        req = request(page, prompt, False, False)
        req.sampling_params.max_new_tokens = tokens
        try:
            refuse_prompt(arriving(page), req)
        except ConfigError as error:
            refused.append(prompt)
            assert f"shorten it to {POOL - max(2, page) - 1}," in str(error)
        else:
            assert Pool(page).admits(req), prompt
    assert refused == list(range(POOL - max(2, page) + 1 - tokens, POOL - 6))


# --- what a think segment says later -------------------------------------------------------------------------------

START, END, WORD = 1, 2, 8
MARKERS = ThinkMarkers(TokenMarker(START), TokenMarker(END))
THINKING = RequestOptions.from_custom_params(None, RPCConfig(interval=64, window=8, scope="think"), knows_markers=True)


def thinking(page: int, prompt: int, output: list[int], events: int = 0, thinks: bool = True) -> Any:
    """Its limit was found on arrival, as if it thought to its end."""
    req = sgl().Req("", "", [START if thinks else WORD] * prompt, sgl().SamplingParams(max_new_tokens=1))
    req.rpc = state = RequestState(THINKING, segment=SegmentTracker(MARKERS, req.origin_input_ids))
    fit_to_pool(arriving(page), req, state, None, 0)
    state.clock.events, state.clock.evicted = events, events * 48
    state.totals.compressions = events
    back(req, 0)
    req.output_ids = output
    req.full_untruncated_fill_ids = req.origin_input_ids + output
    req.kv.kv_allocated_len = prompt + len(output) - state.evicted
    return req


def poll(page: int, req: Any) -> None:
    generated = len(req.output_ids)
    req.rpc.segment.advance(req.output_ids, generated)
    req.rpc.clock.check_at = NEVER
    refit(arriving(page), req, generated)


@everywhere
@pytest.mark.parametrize("backup", [True, False])
@pytest.mark.parametrize(("generated", "events"), [(60, 0), (300, 4), (700, 10)])
def test_an_answer_is_limited_as_soon_as_it_is_seen(page, backup, generated, events, monkeypatch, forgetful):
    req, pool = thinking(page, 24, [WORD] * (generated - 5) + [END] + [WORD] * 4, events), Pool(page)
    most = req.sampling_params.max_new_tokens
    poll(page, req)
    assert not req.rpc.active and req.sampling_params.max_new_tokens < most
    held = 24 + req.sampling_params.max_new_tokens - req.rpc.evicted
    assert POOL - 3 * page - 3 <= held <= POOL - page
    if backup:
        leave(pool, req, monkeypatch)
    else:
        req.rpc.reset()
    assert comes_back(pool, req) == (backup or events == 0)


@everywhere
@pytest.mark.parametrize("backup", [True, False])
def test_one_that_does_not_think_comes_back(page, backup, monkeypatch, forgetful):
    for generated in (2, 20, 100, 200):
        req, pool = thinking(page, 24, [WORD] * generated, thinks=False), Pool(page)
        if backup:
            leave(pool, req, monkeypatch)
        assert comes_back(pool, req), generated


@everywhere
@pytest.mark.parametrize("ignore_eos", [True, False])
def test_what_it_thought_since_the_last_look_counts(page, ignore_eos, monkeypatch, forgetful):
    for output in ([WORD, START, *[WORD] * 58], [WORD] * 40):
        req, pool = thinking(page, 24, output, thinks=False), Pool(page)
        most, req.sampling_params.ignore_eos = req.sampling_params.max_new_tokens, ignore_eos
        req.rpc.segment.advance(output, 1)
        leave(pool, req, monkeypatch)
        assert comes_back(pool, req)
        lowered = most - req.sampling_params.max_new_tokens
        assert lowered == 0 if START in output and page < 4 else 0 <= lowered <= 5 * THINKING.interval


def test_lightthinkers_limit_is_sglangs_while_it_thinks_or_may_yet():
    for thinks in (True, False):
        req = thinking(1, 24, [WORD], thinks=thinks)
        req.rpc.thoughts, req.rpc.hooks.fitted_for = Thoughts(Gists((3,))), None
        most = req.sampling_params.max_new_tokens
        poll(1, req)
        assert (req.sampling_params.max_new_tokens, req.rpc.clock.check_at) == (most, NEVER)


@everywhere
def test_one_that_never_thinks_ends_where_the_pool_does(page):
    output: list[int] = []
    req = thinking(page, 24, output, thinks=False)
    looks = 0
    while len(output) < req.sampling_params.max_new_tokens:
        if 24 + len(output) >= req.rpc.clock.check_at:
            req.kv.kv_allocated_len = 24 + len(output)
            poll(page, req)
            req.rpc.clock.check_at = min(req.rpc.clock.check_at, 24 + len(output) + THINKING.interval)
            looks += 1
        output.append(WORD)
        req.output_ids = output
    assert POOL - 3 * page - 3 <= 24 + len(output) <= POOL - page and looks < 8


@everywhere
def test_one_that_opens_its_thinking_itself_is_compressed_to_its_end(page):
    """The region begins one entry later than was planned for: the limit follows."""
    req = thinking(page, 24, [START], thinks=False)
    most = req.sampling_params.max_new_tokens
    poll(page, req)
    state, tokens = req.rpc, req.sampling_params.max_new_tokens
    assert state.start == 1 and most - 2 * THINKING.interval < tokens <= most
    plan = state.plan(1, tokens - 1, True, 24)
    assert Forecast([plan], page).peak <= capacity_after(arriving(page), 25)
    assert state.hooks.fitted_for == (1, True)


@everywhere
@pytest.mark.parametrize("evicted", [0, 1])
@pytest.mark.parametrize("backup", [True, False])
def test_lightthinkers_requests_come_back(page, evicted, backup, monkeypatch, forgetful):
    for prompt in (16, 17, 24, 32):
        for generated in [*range(1, 200, 40), *range(200, POOL - prompt - 2 * page - 2, 7)]:
            req, pool = request(page, prompt, False, False), Pool(page)
            options = RequestOptions.from_custom_params(None, CONFIG, knows_markers=False)
            req.rpc = RequestState(options, thoughts=Thoughts(Gists((3,))))
            req.rpc.totals.compressions = evicted
            back(req, min(generated, req.sampling_params.max_new_tokens - 1))
            if backup:
                leave(pool, req, monkeypatch)
            assert comes_back(pool, req), (prompt, generated)


# --- anything ---------------------------------------------------------------------------------------------------


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32).map(random.Random))
def test_nobody_waits_for_ever(no_server, monkeypatch, forgetful, rng):
    page, prompt = rng.choice([1, 2, 4, 16, 64]), rng.randint(1, POOL - 70)
    config = RPCConfig(
        interval=rng.choice([8, 16, 64, 100]), window=rng.choice([1, 4, 8, 32]), ratio=rng.choice([2, 4, 8]),
        scope=rng.choice(["all", "think"]),
    )  # fmt: skip
    options = RequestOptions.from_custom_params(None, config, knows_markers=True)
    most = longest(5000, capacity_after(arriving(page), prompt), options)
    if most < 2:
        return
    limit = most if rng.random() < 0.6 else rng.randint(2, most)
    generated = rng.randint(1, limit - 1)
    state = RequestState(options)
    if config.scope == "think":
        state.segment = SegmentTracker(MARKERS, [WORD] * prompt)
        state.segment.start = rng.choice([0, 0, 1, 3, None])
    if state.start is not None and generated > state.start:
        region = generated - state.start
        state.clock.events = max(0, (region - 1 - config.window) // config.interval - rng.choice([0, 0, 1]))
        state.clock.evicted = state.clock.events * (config.interval - options.budget_step)
        state.recording.since = max(0, generated - rng.randint(0, config.window))
    req = sgl().Req("", "", [WORD] * prompt, sgl().SamplingParams(max_new_tokens=limit, ignore_eos=rng.random() < 0.5))
    req.rpc = state
    back(req, generated)
    if prompt + generated - state.evicted > POOL - 2:
        return
    pool = Pool(page)
    if rng.random() < 0.7:
        leave(pool, req, monkeypatch, recorded=rng.random() < 0.5)
    else:
        state.reset()
    comes_back(pool, req)
