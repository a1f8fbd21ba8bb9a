"""Random requests: none of them waits without end."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks.limits import capacity_after
from sglang_rpc.runtime.admission import longest
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import SegmentTracker
from tests.unit.adder.pool import MARKERS, POOL, WORD, Pool, arriving, back, comes_back, leave, sgl


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32).map(random.Random))
def test_every_retracted_request_is_admitted_or_ended(no_server, monkeypatch, forgetful, rng):
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
