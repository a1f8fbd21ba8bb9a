"""Admission over two pools: what is reserved for windows is SGLang's own count, of all tokens to come."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.adder.pool import POOL, Pool, request, sgl
from tests.unit.windows.test_served import two_pools

WINDOW = 40


def pools(page: int, window_slots_taken: int = 0) -> Pool:
    """Of 320 slots for full attention and as many for windows, of which some are taken."""
    made = Pool(page)
    made.allocator = two_pools(page, full=POOL, windowed=POOL)
    if window_slots_taken:
        assert made.allocator.swa_attn_allocator.alloc(window_slots_taken) is not None
    made.runtime.own_windows = True
    made.tree.sliding_window_size = WINDOW
    made.tree.full_evictable_size.return_value = made.tree.swa_evictable_size.return_value = 0
    return made


def adder(pool: Pool, stock: bool) -> Any:
    kind = sgl().PrefillAdder if stock else pool.adder_class
    return kind(
        pool.page_size, pool.tree, pool.allocator, None, new_token_ratio=0.7, rem_input_tokens=10_000,
        rem_chunk_tokens=None,
    )  # fmt: skip


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("tokens", [3, 20, 64])
def test_windows_are_reserved_as_sglang_does(page, tokens):
    """Compressions spare slots of full attention alone."""
    promised = []
    for stock in (True, False):
        made = adder(pools(page), stock)
        for prompt in (5, 50):
            req = request(page, prompt, True, False)
            req.sampling_params.max_new_tokens = tokens
            made.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
            assert made.can_run_list[-1] is req
        promised.append(made.memory_budget.swa_offset)
    assert promised[0] == promised[1] > 2 * min(tokens, WINDOW)


@pytest.mark.parametrize("page", [1, 16])
def test_a_second_request_costs_its_window_whatever_it_raises_the_peak_by(page):
    """One that fits below another's peak costs no slots of full attention, and still has windows of its own."""
    made = adder(pools(page), stock=False)
    for tokens in (200, 30):
        req = request(page, 5, True, True)
        req.sampling_params.max_new_tokens = tokens
        before = made.memory_budget.swa_offset
        made.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
        assert made.can_run_list[-1] is req
        assert made.memory_budget.swa_offset - before >= min(5 + tokens, WINDOW)


def test_a_request_waits_while_its_windows_do_not_fit():
    for taken, fits in ((0, True), (POOL - WINDOW, False)):
        pool = pools(1, taken)
        assert pool.admits(request(1, 30, True, True)) == fits
