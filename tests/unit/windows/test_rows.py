"""What window layers hold while requests of all kinds are compressed, in a played decode loop."""

from __future__ import annotations

import random

import pytest

from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.policy.budget import shortest_interval
from sglang_rpc.policy.resolve import POLICIES
from tests.loops.decode_loop import MARKERS, START, WORD, Loop, config

REACH = 11


def run(loop: Loop, steps: int) -> None:
    """With a look at the windows before each step, not only after compressions."""
    for _ in range(steps):
        loop.run(1)
        for request in loop.requests:
            loop.check_windows(request)


@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_a_window_sees_what_it_would_have_seen(aggregation):
    loop = Loop(config(interval=28, window=4, ratio=4, aggregation=aggregation), reach=REACH)
    first = loop.add(row=1)
    run(loop, 7)
    second = loop.add(row=2, prompt=9, window=2, interval=18, ratio=2)
    third = loop.add(row=3, prompt=1, min_kept=7, interval=8, ratio=8)
    run(loop, 90)
    for request in (first, second, third):
        assert len(request.done) > 1


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("ratio", [1.5, 4])
def test_one_entry_less_would_not_do(ratio, window):
    interval = shortest_interval(REACH - window, ratio)
    loop = Loop(config(interval=interval, window=window, ratio=ratio), reach=REACH)
    loop.add()
    run(loop, 80)
    short = Loop(config(interval=interval - 1, window=window, ratio=ratio), reach=REACH)
    short.add()
    with pytest.raises(AssertionError, match="a window has lost entries"):
        run(short, 80)


@pytest.mark.parametrize("policy", [name for name, policy in POLICIES.items() if not policy.accumulates])
def test_under_every_policy(policy):
    loop = Loop(config(interval=28, policy=policy), reach=REACH, check=False)
    request = loop.add()
    run(loop, 70)
    assert len(request.done) == 2


def test_thoughts_after_an_answers_beginning():
    loop = Loop(config(interval=28, scope="think"), markers=MARKERS, reach=REACH)
    request = loop.add(output=[WORD] * 9 + [START] + [WORD] * 500)
    run(loop, 110)
    assert len(request.done) == 3


def test_early_compressions_at_any_step_and_ratio():
    for steps in range(5, 31):
        loop = Loop(config(interval=28, window=4, ratio=4), reach=REACH)
        request = loop.add()
        assert loop.record_ahead(request)
        run(loop, steps)
        c = loop.evict_early(request, 28)
        assert c is None or c.keep >= REACH - 4
        assert (c is None) == (steps < 4 + 7 + 4)  # a window of entries must be gained
        run(loop, 61 - steps)
        assert [event for _, event, _ in request.done] == [1, 2]


def test_retracted_and_restored():
    loop = Loop(config(interval=28), reach=REACH)
    backups = HostBackup([*loop.layers, *loop.windows], 2**20, chunk_bytes=2**10)
    request, rng = loop.add(), random.Random(3)
    for row in (2, 3, 1, 2):
        run(loop, rng.randint(20, 30))
        loop.leave(request, backups)
        loop.come_back(request, row, backups)
        loop.check_windows(request)
    assert len(request.done) == 3
    loop.retract(request)  # and rebuilt from its tokens
    loop.check_windows(request)
    run(loop, 40)


def test_the_ring_and_the_scores_are_of_full_attention_alone():
    loop = Loop(config(interval=28), reach=REACH)
    assert loop.compressor.window_layers == 3
    assert loop.compressor.reach == REACH
    assert len(loop.compressor.layers) == loop.ring.buffer.shape[0] == 2
    seen = []
    loop.compressor.observe(lambda compressions, kept: seen.append(kept.shape))
    loop.add()
    loop.run(40)
    assert seen == [(2, 1, 1, 7)]
