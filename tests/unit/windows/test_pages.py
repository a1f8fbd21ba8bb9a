"""Where windows have a KV pool of their own, of pages: how much is evicted, and what is refused."""

from __future__ import annotations

import random

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.contract.refusals.request import refuse_reach
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.budget import Budget, pages_missed
from sglang_rpc.runtime.admission import Forecast, longest
from sglang_rpc.runtime.decision import Compress, early, early_gain, poll
from sglang_rpc.runtime.request_state import RequestState


@pytest.mark.parametrize(
    ("interval", "ratio", "page", "better"),
    [
        (4096, 4, 64, None),  # the defaults evict 3072
        (4096, 4, 128, None),
        (4096, 4, 256, None),
        (4097, 4, 64, 4181),
        (100, 2, 16, 127),  # 63 stay, 64 go
        (96, 2, 16, None),
        (1000, 1.5, 16, 1006),
        (1000, 3.3, 1, None),
    ],
)
def test_what_is_missed_and_what_would_do(interval, ratio, page, better):
    options = RPCConfig(interval=interval, ratio=ratio)
    sentence = pages_missed(options, page)
    assert (sentence is None) == (better is None)
    if sentence is not None:
        evicted = interval - int(interval / ratio)
        assert evicted % page
        assert sentence == (
            f"pages of {page} slots, where with interval {interval} and ratio {ratio:g} a compression evicts {evicted} "
            f"entries (interval {better} would do)"
        )
        assert pages_missed(RPCConfig(interval=better, ratio=ratio), page) is None
        shorter = (RPCConfig(interval=p, ratio=ratio) for p in range(interval, better))
        assert all(pages_missed(each, page) for each in shorter)


def test_a_request_that_would_split_pages_is_refused():
    server = RPCConfig(interval=4096, window=32, ratio=4)
    options = RequestOptions.from_custom_params({"rpc": {"interval": 2000}}, server, knows_markers=False)
    refuse_reach(options, 127)
    with pytest.raises(ConfigError) as caught:
        refuse_reach(options, 127, 64)
    assert str(caught.value) == (
        "custom_params.rpc does not suit this model, whose windows have a KV pool of their own, of pages of 64 slots, "
        "where with interval 2000 and ratio 4 a compression evicts 1500 entries (interval 2047 would do) "
        "[request.pages]"
    )


def state_of(page: int, reach: int = 0, **options) -> RequestState:
    return RequestState(RequestOptions(True, scope="all", **options), reach=reach, page=page)


def played(state: RequestState, tokens: int, rng: random.Random) -> tuple[int, int]:
    """Entries held at most, and after the last compression, of a request that is compressed at any moment."""
    held = most = last = 0
    for generated in range(1, tokens + 1):
        held += 1
        most = max(most, held)
        late = rng.random() < 0.5
        state.recording.slot, state.recording.since = 1, 0
        decided = None
        if generated >= state.clock.check_at and not late:
            decided = poll(state, generated, dates_kept=True)
        elif rng.random() < 0.1:
            decided = early(state, generated, state.options.ratio)
        if isinstance(decided, Compress):
            candidates = held - decided.window
            assert decided.keep < candidates
            assert (candidates - decided.keep) % state.page == 0
            state.clock.evict(candidates - decided.keep, generated)
            state.clock.pass_dates(decided.event)
            held = last = decided.keep + decided.window
    return most, last


@pytest.mark.parametrize("page", [1, 4, 16])
@pytest.mark.parametrize("least", [0, 37])
def test_whole_pages_are_evicted_early_and_late_too(page, least):
    for seed in range(20):
        state = state_of(page, interval=64, window=5, ratio=2, min_kept=least)
        _, last = played(state, 400, random.Random(seed))
        assert last, "nothing was compressed"
        budget = Budget.of(state.options)
        # No less than unpaged, and less than a page more.
        events = state.clock.events
        assert last - 5 < budget.early_kept(400, events, 2) + page


def test_due_dates_keep_the_papers_budget():
    """Of an interval that evicts whole pages nothing is rounded."""
    state, held = state_of(16, interval=96, window=8, ratio=2), 0
    for generated in range(1, 500):
        held += 1
        state.recording.slot, state.recording.since = 1, 0
        decided = poll(state, generated, dates_kept=True) if generated >= state.clock.check_at else None
        if isinstance(decided, Compress):
            assert decided.keep == decided.event * 48
            state.clock.evict(held - 8 - decided.keep, generated)
            state.clock.pass_dates(decided.event)
            held = decided.keep + 8
    assert state.clock.events == 5


def test_what_is_left_of_a_page_is_no_gain():
    for page, gain in ((1, 30), (8, 24), (16, 16), (32, 0)):
        state = state_of(page, interval=640, window=4, ratio=2)
        assert early_gain(state, 64, 2) == gain


@pytest.mark.parametrize("page", [1, 4, 16])
def test_room_is_planned_for_what_is_left_of_a_page(page):
    options = RequestOptions(True, 64, 8, 2, "all")
    state = RequestState(options, page=page)
    plan = state.plan(0, 500, True, 0)
    assert (
        Forecast([plan], 1).peak == Budget.of(options, page=page).peak(500) == Budget.of(options).peak(500) + page - 1
    )
    most = longest(10_000, 300, options, page)
    assert Budget.of(options, page=page).peak(most) <= 300 < Budget.of(options, page=page).peak(most + 1)
    short = state.plan(0, 50, True, 0)  # before the first compression there is no remainder
    assert Forecast([short], 1).peak == 50
