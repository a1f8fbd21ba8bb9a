"""What a row holds when thoughts are evicted: thoughts of 7, 1, 0 and 12 tokens."""

from __future__ import annotations

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import scheduling, unresumable
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.policy.lightthinker import Gists, Thoughts
from sglang_rpc.runtime.admission import Plan
from sglang_rpc.runtime.decision import early_gain
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import ThinkMarkers, TokenMarker
from tests.fakes.batches import ScheduleBatch
from tests.fakes.requests import Req, ReqKvInfo, SamplingParams, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.loops.decode_loop import LAYERS, WORD, Loop
from tests.unit.lightthinker.gists import CONFIG, GISTS, config

OUTPUT = [
    *[WORD] * 7, *(91, 92, 93, 99),
    *[WORD] * 1, *(91, 92, 93),
    *(91, 92, 93),
    *[WORD] * 12, *(91, 92, 93, 99),
    *[WORD] * 40,
]  # fmt: skip
FIRST, SECOND, THIRD = range(0, 7), range(11, 12), range(18, 30)
DUE = (10, 15, 33)  #: entries there when the last gist of each is


def kept_of(generated: int, *evicted: range) -> list[list[list[int]]]:
    """What every layer and head holds."""
    return [[[p for p in range(generated) if not any(p in gone for gone in evicted)]] * 2] * LAYERS


@pytest.fixture
def loop() -> Loop:
    return Loop(config(), gists=GISTS)


def test_a_row_loses_each_thought_when_its_gists_are_there(loop):
    request = loop.add(output=OUTPUT)
    gone = []
    for generated in range(1, 40):
        loop.run(1)
        gone += [thought for thought, due in zip((FIRST, SECOND, THIRD), DUE, strict=True) if due == generated]
        assert loop.held(request) == kept_of(generated, *gone)
    assert request.done == [(10, 1, False), (15, 2, False), (33, 3, False)]
    receipt = request.state.receipt(39)
    assert (receipt["compressions"], receipt["evicted"], receipt["held"]) == (3, 20, 19)
    assert loop.ring.in_use == 0
    assert len(request.polls) < 25


def test_requests_of_one_step_do_not_disturb_each_other(loop):
    first, second = loop.add(row=1, output=OUTPUT), loop.add(row=2, prompt=9, output=OUTPUT[7:])
    off = loop.add(row=3, output=OUTPUT, enabled=False)
    loop.run(35)
    assert loop.held(first) == kept_of(35, FIRST, SECOND, THIRD)
    assert loop.held(second) == kept_of(35, range(4, 5), range(11, 23))
    assert loop.held(off) == kept_of(35)


def settled(loop):
    """The scheduler polls again as long as there is something to do."""
    while any(r.length >= r.state.clock.check_at for r in loop.requests):
        loop.poll()


def test_a_row_rebuilt_from_its_tokens_loses_all_of_them_again(loop):
    request = loop.add(output=OUTPUT)
    loop.run(36)
    loop.retract(request)
    assert loop.held(request) == kept_of(36)
    settled(loop)
    assert loop.held(request) == kept_of(36, FIRST, SECOND, THIRD)
    assert [late for *_, late in request.done] == [False] * 3 + [True] * 3
    receipt = request.state.receipt(36)
    assert (receipt["compressions"], receipt["late"], receipt["evicted"], receipt["held"]) == (6, 3, 40, 16)


@pytest.mark.parametrize("generated", [9, 10, 11, 20, 33])
def test_a_row_comes_back_as_it_was(loop, generated):
    request, backups = loop.add(output=OUTPUT), HostBackup(loop.layers, 10**9)
    loop.run(generated)
    before = loop.held(request)
    loop.leave(request, backups)
    loop.come_back(request, 2, backups)
    assert loop.held(request) == before
    loop.run(36 - generated)
    assert loop.held(request) == kept_of(36, FIRST, SECOND, THIRD)
    assert request.done == [(10, 1, False), (15, 2, False), (33, 3, False)]


def test_a_row_that_is_still_being_prefilled_is_left_alone(loop, monkeypatch):
    """A re-prefill in chunks goes on after the entries that are there, which therefore must not move."""
    request = loop.add(output=OUTPUT)
    loop.run(9)  # the last gist's entry comes with the next step
    loop._decode(request)
    kv = ReqKvInfo(req_pool_idx=request.row, kv_committed_len=request.length)
    req = Req(ids(request.prompt), ids(request.output), request.state, kv)
    scheduler, batch, evicted = Scheduler(chunked_req=req), ScheduleBatch([req]), []
    scheduler.rpc = runtime = Runtime(scheduler, loop.config, loop.compressor, loop.ring)
    runtime.report_slots = lambda: None

    def apply(_runtime, batch, due):
        evicted.extend(compression.evicted for _, _, compression in due)
        batch.reqs.clear()  # asked again, it would say the same: nothing has been moved

    monkeypatch.setattr(scheduling, "apply_compressions", apply)
    scheduling.compress_due(scheduler, batch, None)
    assert (evicted, request.state.clock.events) == ([], 0)
    scheduler.chunked_req = None
    scheduling.compress_due(scheduler, batch, None)
    assert evicted == [7]


def test_only_what_the_model_thinks_is_a_thought():
    markers = ThinkMarkers(TokenMarker(80), TokenMarker(81))
    made = Loop(RPCConfig(policy="lightthinker", gist_tokens=(91,)), gists=Gists((91,)), markers=markers)
    request = made.add(output=[WORD, 91, WORD, 80, WORD, WORD, 91, WORD, 81, WORD, 91, WORD, WORD, WORD])
    made.run(14)
    assert made.held(request) == kept_of(14, range(4, 6))


def test_nothing_is_planned_on_and_nothing_given_up_early(loop):
    request = loop.add(output=OUTPUT)
    loop.run(12)
    state = request.state
    assert state.plan(12, 100, True, 0) == Plan(5, 12, 100, True)
    assert early_gain(state, 12, 16) == 0
    assert loop.evict_early(request, 64) is None


def test_a_request_that_had_no_gists_says_so(loop):
    request = loop.add(output=[WORD] * 30)
    loop.run(20)
    assert request.state.receipt(20)["reason"] == "no thought was followed by the gist tokens"


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("evicted", [0, 1])
def test_a_request_that_fits_the_pool_by_sglangs_clip_can_be_prefilled_again(page, evicted):
    prompt, pool = 100, 4096
    state = RequestState(RequestOptions.from_custom_params(None, CONFIG, knows_markers=False), thoughts=Thoughts(GISTS))
    state.totals.compressions = evicted
    clip = pool - -(-prompt // page) * page - page - 1
    params = SamplingParams(max_new_tokens=clip)
    req = Req(ids([0] * prompt), rpc=state, sampling_params=params)
    runtime = Runtime(Scheduler(page_size=page, max_total_num_tokens=pool))
    for generated in (1, 99, clip - 1):
        req.output_ids = ids([0] * generated)
        assert not unresumable.is_unresumable(runtime, req)
        assert params.max_new_tokens == clip
    if evicted:  # and so longer than the pool, and with what it had evicted it does not fit any more
        params.max_new_tokens, req.output_ids = pool + 9, ids([0] * pool)
        assert unresumable.is_unresumable(runtime, req)
