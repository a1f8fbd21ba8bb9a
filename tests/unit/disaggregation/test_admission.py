"""What a decode server reserves: peaks of what is held, where SGLang counts tokens."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks.decode_admission import (
    growth,
    reserve_for_those_there,
    space_for_a_new_one,
    space_for_one_that_comes_back,
    space_for_the_longest,
)
from sglang_rpc.policy.budget import Budget
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.request_state import Kept, RequestState
from sglang_rpc.startup import cpu
from tests.fakes.batches import ScheduleBatch
from tests.fakes.disaggregation import DecodePreallocQueue, DecodeRequest
from tests.fakes.requests import Req, ReqKvInfo, SamplingParams, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler

CONFIG = RPCConfig(interval=64, window=8, ratio=4, scope="all")
OPTIONS = RequestOptions.from_custom_params(None, CONFIG, knows_markers=False)
PROMPT = 10


@pytest.fixture
def queue():
    cpu.prepare()
    scheduler = Scheduler()
    scheduler.rpc = Runtime(scheduler, CONFIG, decode_server=True)
    made = scheduler.disagg_decode_prealloc_queue = DecodePreallocQueue(scheduler, num_reserved_decode_tokens=50)
    made.queue.append(DecodeRequest(Req()))  # somebody waits
    return made


def request(tokens: int, compressed: bool = True, generated: int = 0, evicted: int = 0, holds: bool = True) -> Req:
    """That may generate `tokens`, of which it has generated one, or more, that have entries."""
    rpc = None
    if compressed:
        rpc = RequestState(OPTIONS)
        rpc.clock = Clock(events=evicted // 48, evicted=evicted)
    entries = PROMPT + generated - evicted if holds else 0
    kv = ReqKvInfo(1 if holds else None, kv_committed_len=entries, kv_allocated_len=entries)
    return Req(ids([1] * PROMPT), ids([2] * (generated + 1)), rpc, kv, SamplingParams(max_new_tokens=tokens))


def rpc(queue: DecodePreallocQueue) -> Runtime:
    return queue.scheduler.rpc


def peak(tokens: int) -> int:
    return Budget.of(OPTIONS).peak(tokens)


def never(*_args):
    raise AssertionError("SGLang counts tokens")


def test_a_request_grows_to_its_peak(queue):
    reqs = [request(300), request(300, compressed=False), request(300, generated=80, evicted=48), request(2)]
    assert growth(rpc(queue), queue, reqs) == [peak(299), 299, peak(299) - 32, 1]
    assert peak(299) < 150


def test_a_retracted_one_to_the_same_peak(queue):
    req = request(300, generated=80, evicted=48, holds=False)
    assert growth(rpc(queue), queue, [req]) == [peak(299) - 32]


def test_it_is_found_out_once_a_step(queue):
    req = request(300)
    assert growth(rpc(queue), queue, [req]) == [peak(299)]
    req.sampling_params.max_new_tokens = 2
    assert growth(rpc(queue), queue, [req]) == [peak(299)]
    rpc(queue).step += 1
    assert growth(rpc(queue), queue, [req]) == [1]


def test_pages_are_whole(queue):
    queue.scheduler.page_size = 16
    assert growth(rpc(queue), queue, [request(23, compressed=False)]) == [16]  # 10 of 16 now, 32 then


def test_for_nobody_more_is_reserved_than_it_grows(queue):
    scheduler = queue.scheduler
    scheduler.running_batch = ScheduleBatch([request(300), request(20)])
    queue.transfer_queue.queue = [DecodeRequest(request(30)), DecodeRequest(request(300), host_staged=True)]
    scheduler.waiting_queue = [request(11)]
    assert reserve_for_those_there(never, queue) == 50 + 19 + 29 + 10
    assert reserve_for_those_there(never, queue, extra_reserved_reqs=2) == 108 + 100


def test_where_nobody_waits_nothing_is_planned(queue):
    queue.queue.clear()
    assert reserve_for_those_there(lambda queue, n, extra: ("theirs", n, extra), queue, None, 1) == ("theirs", None, 1)
    assert space_for_the_longest(lambda queue, retractable: ("theirs", retractable), queue, 9) == ("theirs", 9)
    queue.retracted_queue.append(request(300, holds=False))
    assert reserve_for_those_there(never, queue) == 0


def test_without_rpc_it_is_sglangs(queue):
    queue.scheduler.rpc = None
    assert reserve_for_those_there(lambda *args: args[1:], queue, 3, 1) == (3, 1)
    assert space_for_the_longest(lambda *args: args[1:], queue, 9) == (9,)
    assert space_for_a_new_one(lambda *args: args[2:], queue, request(9), 1, 2, 3) == (1, 2, 3)
    assert space_for_one_that_comes_back((7, 8), queue, request(9)) == (7, 8)


def test_the_longest_can_end_once_the_others_are_retracted(queue):
    a, b = request(300, generated=80, evicted=48), request(100)
    queue.scheduler.running_batch = ScheduleBatch([a, b])
    # a grows by peak - 32, and may have what b holds; b by its own peak, and may have what a holds.
    grows = [peak(299) - 32, peak(99)]
    assert growth(rpc(queue), queue, [a, b]) == grows
    assert space_for_the_longest(never, queue, 1000) == max(grows[0] - PROMPT, grows[1] - (PROMPT + 32))
    a.kv.cache_protected_len = PROMPT  # the tree's, which a retraction does not free
    assert space_for_the_longest(never, queue, 1000) == max(grows[0] - PROMPT, grows[1] - 32)


def test_a_new_one_needs_its_prompt_and_what_it_grows_by_that_nobody_gives_up(queue):
    new = request(300, holds=False)
    new.output_ids = ids()
    queue.scheduler.running_batch = ScheduleBatch([])
    assert space_for_a_new_one(never, queue, new, PROMPT, 0, 0) == PROMPT + peak(300)
    queue.scheduler.running_batch = ScheduleBatch([request(300, generated=300, evicted=240)])
    assert space_for_a_new_one(never, queue, new, PROMPT, 0, 0) == PROMPT + max(50, peak(300) - 70)


def test_one_that_comes_back_needs_no_more_reserve_than_it_grows(queue):
    assert space_for_one_that_comes_back((20 + 50, 90), queue, request(20)) == (20 + 19, 90)
    assert space_for_one_that_comes_back((20 + 50, 90), queue, request(300)) == (20 + 50, 90)


def test_an_empty_pool_takes_back_whatever_was_admitted_to_it(queue):
    """Else a lone retracted request would wait forever."""
    scheduler = queue.scheduler
    scheduler.max_total_num_tokens = PROMPT + peak(299) + 2
    for generated in range(1, 299):
        events = max(0, (generated - 8) // 64)
        evicted = 48 * events
        req = request(300, generated=generated, evicted=evicted, holds=False)
        if generated >= 64 * (events + 1):  # it was being recorded
            req.rpc.hooks.kept = Kept(64 * (events + 1), torch.zeros(1))
        row = PROMPT + generated - evicted
        needed, _ = space_for_one_that_comes_back((row + 50, 0), queue, req)
        assert needed <= scheduler.max_total_num_tokens, generated
