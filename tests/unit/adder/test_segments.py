"""A reasoning segment that opens or closes after arrival: the limit follows, and the request comes back."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks.limits import capacity_after, fit_to_pool, refit
from sglang_rpc.policy.lightthinker import Gists, Thoughts
from sglang_rpc.runtime.admission import Forecast
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import SegmentTracker
from sglang_rpc.types import NEVER
from tests.unit.adder.pool import (
    CONFIG,
    END,
    MARKERS,
    POOL,
    START,
    WORD,
    Pool,
    arriving,
    back,
    comes_back,
    everywhere,
    leave,
    request,
    sgl,
)

THINKING = RequestOptions.from_custom_params(None, RPCConfig(interval=64, window=8, scope="think"), knows_markers=True)


def thinking(page: int, prompt: int, output: list[int], events: int = 0, thinks: bool = True) -> Any:
    """Its limit was result on arrival, as if it thought to its end."""
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
    refit(arriving(page), req, req.rpc, generated)


@everywhere
@pytest.mark.parametrize("backup", [True, False])
@pytest.mark.parametrize(("generated", "events"), [(60, 0), (300, 4), (700, 10)])
def test_an_answer_is_limited_as_soon_as_it_is_seen(page, backup, generated, events, monkeypatch, forgetful):
    req, pool = thinking(page, 24, [WORD] * (generated - 5) + [END] + [WORD] * 4, events), Pool(page)
    most = req.sampling_params.max_new_tokens
    poll(page, req)
    assert not req.rpc.active
    assert req.sampling_params.max_new_tokens < most
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
def test_what_it_thought_since_the_last_poll_counts(page, ignore_eos, monkeypatch, forgetful):
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
    polls = 0
    while len(output) < req.sampling_params.max_new_tokens:
        if 24 + len(output) >= req.rpc.clock.check_at:
            req.kv.kv_allocated_len = 24 + len(output)
            poll(page, req)
            req.rpc.clock.check_at = min(req.rpc.clock.check_at, 24 + len(output) + THINKING.interval)
            polls += 1
        output.append(WORD)
        req.output_ids = output
    assert POOL - 3 * page - 3 <= 24 + len(output) <= POOL - page
    assert polls < 8


@everywhere
def test_one_that_opens_its_thinking_itself_is_compressed_to_its_end(page):
    """The region begins one entry later than was planned for: the limit follows."""
    req = thinking(page, 24, [START], thinks=False)
    most = req.sampling_params.max_new_tokens
    poll(page, req)
    state, tokens = req.rpc, req.sampling_params.max_new_tokens
    assert state.start == 1
    assert most - 2 * THINKING.interval < tokens <= most
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
