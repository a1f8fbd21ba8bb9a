"""With a pipeline, admission to one micro-batch counts what the others hold, and will hold: the pool is theirs too."""

from __future__ import annotations

import pytest

from tests.fakes.batches import ScheduleBatch
from tests.unit.adder.pool import POOL, Pool, request


def running(pool: Pool, tokens: int):
    """A request that decodes, has to come to `tokens` more, and holds its prompt."""
    req = request(1, 20, False, True)
    req.sampling_params.max_new_tokens = tokens
    req.kv.req_pool_idx, req.kv.kv_allocated_len = 1, 20
    assert pool.allocator.alloc(20) is not None
    return req


def waiting(tokens: int):
    req = request(1, 20, False, True)
    req.sampling_params.max_new_tokens = tokens
    return req


@pytest.mark.parametrize("pipelined", [False, True])
def test_what_another_micro_batch_will_hold_is_not_promised_again(pipelined):
    pool = Pool(1)
    other = running(pool, POOL // 2)
    pool.runtime.pipelined = pipelined
    pool.runtime.scheduler.in_flight = [ScheduleBatch([other]), None, ScheduleBatch([other])]
    assert pool.admits(waiting(POOL // 2)) is not pipelined
    assert pool.admits(waiting(POOL // 4))


def test_a_prefill_that_goes_on_is_counted_as_it_is_added():
    pool = Pool(1)
    chunked = running(pool, POOL // 2)
    pool.runtime.pipelined = True
    pool.runtime.scheduler.in_flight = [ScheduleBatch([chunked])]
    pool.runtime.scheduler.chunked_req = chunked
    assert pool.adder()._forecast.peak == 0
    pool.runtime.scheduler.chunked_req = None
    assert pool.adder()._forecast.peak == POOL // 2
