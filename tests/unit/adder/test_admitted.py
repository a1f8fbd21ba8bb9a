"""What the pool has room for is admitted: on arrival, prefilled again, or restored from a backup."""

from __future__ import annotations

import pytest

from sglang_rpc.hooks import resume, unresumable
from tests.fakes.memory import ReqToTokenPool
from tests.fakes.runtime import ring
from tests.unit.adder.pool import CONFIG, POOL, Pool, comes_back, either, everywhere, leave, request


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


@pytest.mark.parametrize("retracted", [True, False])
@everywhere
def test_beside_a_backup_nothing_is_loaded_back_from_host_memory(page, retracted, monkeypatch, forgetful):
    req, pool = request(page, 32, True, True, 16 if retracted else 0), Pool(page)
    if retracted:
        leave(pool, req, monkeypatch)
    req.host_hit_length, req.best_match_node = 16, "node"
    pool.tree.init_load_back.return_value = (16, "node")
    pool.tree.buffer_pipeline = pool.tree.linker = None
    assert pool.admits(req)
    assert pool.tree.init_load_back.called != retracted
    assert req.prefix_len == (32 + 15 if retracted else 16)


def test_a_preempted_request_is_asked_twice_and_ends_for_the_first_reason(monkeypatch, forgetful):
    req, pool = request(1, 30, True, True, 100), Pool(1)
    leave(pool, req, monkeypatch)
    req.sampling_params.max_new_tokens = 100 * POOL
    assert unresumable.is_unresumable(pool.runtime, req)  # when it is released, which drops its backup
    reason = req.rpc.hooks.ended
    assert "without a KV backup" not in reason
    assert unresumable.is_unresumable(pool.runtime, req)  # when it is queued
    assert req.rpc.hooks.ended == reason


@pytest.mark.parametrize("aborted", [True, False])
def test_an_abort_keeps_the_reason_that_it_has(aborted):
    req, pool = request(1, 30, True, True, 100), Pool(1)
    req.sampling_params.max_new_tokens = 100 * POOL
    pool.runtime.report_backups = lambda: None
    rows = ReqToTokenPool(rpc=pool.runtime)
    resumable = resume.back_up(lambda **_given: True, req=req, req_to_token_pool=rows, offload_kv=not aborted)
    assert resumable == aborted
    assert (req.rpc.hooks.ended is None) == aborted


@pytest.mark.parametrize(("slots", "admitted"), [(8, 7), (3, 6), (1, 5)])
def test_with_few_query_slots_fewer_are_admitted_for_all_wait_longer(slots, admitted):
    # 40 entries each at most, of 320. Seven on three slots would need 322, for the last waits two waves of 5 steps.
    pool = Pool(1)
    pool.runtime.ring = ring(slots)
    adder = pool.adder()
    for _ in range(8):
        req = request(1, 0, True, True)
        req.sampling_params.max_new_tokens = 100
        adder.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
    assert len(adder.can_run_list) == admitted
