"""Thoughts and their gists in token streams; and what a row holds when they are evicted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.contract.settings import _refuse_gists
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import scheduling, unresumable
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.policy.lightthinker import Gists, Thought, Thoughts
from sglang_rpc.runtime.admission import Plan
from sglang_rpc.runtime.decision import early_gain
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import ThinkMarkers, TokenMarker
from tests.loops.decode_loop import LAYERS, WORD, Loop

GISTS = Gists((91, 92, 93), resume=99)
CONFIG = RPCConfig(policy="lightthinker", gist_tokens=(91, 92, 93), scope="all")


def read(output, gists=GISTS, start=0):
    thoughts = Thoughts(gists)
    thoughts.advance(output, len(output), start)
    return [(t.begin, t.end, t.complete) for t in thoughts.done]


def by_hand(output, gists, start=0):
    """The same by looking at the whole text: from the left, the first whole run of gists, then what is behind it."""
    found, begin, at, size = [], start, start, len(gists.ids)
    while at + size <= len(output):
        if tuple(output[at : at + size]) != gists.ids:
            at += 1
            continue
        if begin < at:
            found.append((begin, at, at + size))
        at += size
        begin = at + (at < len(output) and output[at] == gists.resume)
    return found


def test_a_thought_is_done_when_its_last_gist_is_there():
    thoughts, output = Thoughts(GISTS), [1, 2, 91, 92, 93, 99, 3]
    for upto in range(5):
        thoughts.advance(output, upto)
        assert thoughts.done == []
    thoughts.advance(output, 5)
    assert thoughts.done == [Thought(0, 2, 5)]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ([], []),
        ([1, 2, 3], []),  # never summed up: it stays
        ([1, 91, 92, 93], [(0, 1, 4)]),
        ([1, 91, 92, 93, 99, 2, 3, 91, 92, 93], [(0, 1, 4), (5, 7, 10)]),  # what resumes is kept, as the gists are
        ([1, 91, 92, 93, 2, 99, 91, 92, 93], [(0, 1, 4), (4, 6, 9)]),  # elsewhere it is a word
        ([99, 91, 92, 93], [(0, 1, 4)]),
        ([91, 92, 93, 1], []),  # an empty thought
        ([1, 91, 92, 93, 91, 92, 93, 99, 91, 92, 93], [(0, 1, 4)]),
        ([1, 91, 92, 2, 93, 91, 92, 93], [(0, 5, 8)]),  # a broken run is text
        ([1, 92, 93, 91], []),  # in another order too
        ([1, 91, 91, 92, 93], [(0, 2, 5)]),
        ([1, 91, 92, 91, 92, 93], [(0, 3, 6)]),
    ],
)
def test_streams(output, found):
    assert read(output) == found == by_hand(output, GISTS)


def test_one_id_may_be_said_several_times():
    assert read([1, 5, 5, 2, 5, 5, 5], Gists((5, 5))) == [(0, 1, 3), (3, 4, 6)]
    assert read([1, 1, 1, 2], Gists((1, 1, 2))) == [(0, 1, 4)]


def test_a_thought_may_begin_behind_what_is_no_thought():
    assert read([91, 92, 93, 1, 91, 92, 93], start=3) == [(3, 4, 7)]
    assert read([1, 91, 92, 93, 91, 92, 93], start=2) == [(2, 4, 7)]  # gists that began before it are none


def test_a_single_gist_token():
    assert read([1, 2, 9, 3, 9], Gists((9,))) == [(0, 2, 3), (3, 4, 5)]


RUNS = st.lists(st.sampled_from([1, 2, 3, 9]), max_size=40)


@given(RUNS, st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4), st.integers(0, 5))
@example([1, 1, 2, 1, 1, 2, 1, 1, 3], [1, 1, 2, 1, 1, 3], 0)
def test_any_stream_is_read_as_by_hand_however_it_comes(output, ids, start):
    gists = Gists(tuple(ids), resume=9)
    assert read(output, gists, start) == by_hand(output, gists, start)
    thoughts, at_look = Thoughts(gists), start
    for upto in range(start, len(output) + 1):
        before = len(thoughts.done)
        complete = [end for *_, end in by_hand(output[:upto], gists, start)]
        if upto >= at_look:  # nobody looks earlier than it says
            thoughts.advance(output, upto, start)
            assert thoughts.next_check > upto
            at_look = thoughts.next_check
            # Whatever is found was completed by this very token: no look came too late.
            assert [t.complete for t in thoughts.done] == complete and set(complete[before:]) <= {upto}
        else:
            assert len(complete) == before


# ---- rows: thoughts of 7, 1, 0 and 12 tokens; what resumes stands behind the first and the last

OUTPUT = [
    *[WORD] * 7, *(91, 92, 93, 99),
    *[WORD] * 1, *(91, 92, 93),
    *(91, 92, 93),
    *[WORD] * 12, *(91, 92, 93, 99),
    *[WORD] * 40,
]  # fmt: skip
FIRST, SECOND, THIRD = range(0, 7), range(11, 12), range(18, 30)
DUE = (10, 15, 33)  #: entries there when the last gist of each is


def config(**others) -> RPCConfig:
    return RPCConfig(policy="lightthinker", gist_tokens=(91, 92, 93), gist_resume=99, scope="all", **others)


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
    assert loop.ring.in_use == 0 and len(request.polls) < 25  # about every third step, and again behind each thought


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


def test_a_row_that_is_still_being_prefilled_is_left_alone(loop):
    """A re-prefill in chunks goes on behind the entries that are there, which therefore must not move."""
    request = loop.add(output=OUTPUT)
    loop.run(9)  # the last gist's entry comes with the next step
    loop._decode(request)
    kv = SimpleNamespace(kv_committed_len=request.length, req_pool_idx=request.row)
    req = SimpleNamespace(rpc=request.state, kv=kv, origin_input_ids=request.prompt, output_ids=request.output)
    runtime = SimpleNamespace(scheduler=SimpleNamespace(chunked_req=req), compressor=loop.compressor)
    assert scheduling._poll(runtime, req) is None and request.state.clock.events == 0
    runtime.scheduler.chunked_req = None
    assert scheduling._poll(runtime, req).evicted == 7


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
    assert state.plan(12, 100, True, 0) == Plan(5, 12, 100, True) and early_gain(state, 12, 16) == 0
    assert loop.evict_early(request, 64) is None


def test_a_request_that_had_no_gists_says_so(loop):
    request = loop.add(output=[WORD] * 30)
    loop.run(20)
    assert request.state.receipt(20)["reason"] == "no thought was followed by the gist tokens"


@pytest.mark.parametrize("name", ["interval", "window", "ratio"])
def test_a_request_has_no_budget_to_choose(name):
    with pytest.raises(ConfigError, match=rf"custom_params\.rpc\.{name} has no meaning here"):
        RequestOptions.from_custom_params({"rpc": {name: 8}}, config())
    assert RequestOptions.from_custom_params({"rpc": {"enabled": False}}, config()).enabled is False


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(gist_tokens=None), "needs the model's gist tokens; name them with --rpc-gist-tokens"),
        (dict(interval=64), "and so has no interval; leave --rpc-interval out"),
        (dict(when="pressure"), "and so has no when; leave --rpc-when out"),
        (dict(max_ratio=8), "and so has no max_ratio; leave --rpc-max-ratio out"),
        (dict(policy="rpc"), "gist_tokens and gist_resume are policy lightthinker's, and the policy is rpc"),
        (dict(policy="rpc", gist_tokens=None), "gist_tokens and gist_resume are policy lightthinker's"),
    ],
)
def test_what_does_not_go_together_is_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        _refuse_gists(RPCConfig(**{**config().as_dict(), **given}))
    _refuse_gists(config())
    _refuse_gists(RPCConfig())


@pytest.mark.parametrize("value", [[], "91", 91, [""], [-1], [True], [1.5], [None]])
def test_gist_tokens_are_texts_or_ids(value):
    with pytest.raises(ConfigError, match="gist_tokens must be"):
        RPCConfig(gist_tokens=value)


def test_gist_tokens_come_as_json_has_them():
    found = RPCConfig.parse('{"policy": "lightthinker", "gist_tokens": ["<o>", 7], "gist_resume": 9}')
    assert found.gist_tokens == ("<o>", 7) and RPCConfig.parse(found.to_json()) == found


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("evicted", [0, 1])
def test_a_request_that_fits_the_pool_by_sglangs_clip_can_be_prefilled_again(page, evicted):
    prompt, pool = 100, 4096
    state = RequestState(RequestOptions.from_custom_params(None, CONFIG, knows_markers=False), thoughts=Thoughts(GISTS))
    state.totals.compressions = evicted
    clip = pool - -(-prompt // page) * page - page - 1
    params = SimpleNamespace(max_new_tokens=clip, ignore_eos=False)
    req = SimpleNamespace(rpc=state, output_ids=[0] * 99, origin_input_ids=[0] * prompt, sampling_params=params)
    scheduler = SimpleNamespace(page_size=page, max_total_num_tokens=pool)
    backups = SimpleNamespace(used=0, limit=0)
    runtime = SimpleNamespace(scheduler=scheduler, page_size=page, backups=backups)
    for generated in (1, 99, clip - 1):
        req.output_ids = [0] * generated
        assert not unresumable.is_unresumable(runtime, req) and params.max_new_tokens == clip
    if evicted:  # and so longer than the pool, and with what it had evicted it does not fit any more
        params.max_new_tokens, req.output_ids = pool + 9, [0] * pool
        assert unresumable.is_unresumable(runtime, req)
