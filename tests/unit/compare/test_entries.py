"""KV entries over a request's life, from its receipt alone: equal to those of a request that is played step by step."""

from statistics import fmean

import pytest

from eval.compare import entries
from sglang_rpc.policy.budget import Budget
from sglang_rpc.runtime.receipt import make_receipt
from tests.loops.decode_loop import Loop, config


def played(steps, early_at=None, **options):
    """What a request held at each length, and its receipt."""
    loop = Loop(config(), check=False)
    request = loop.add(**options)
    held = []
    for _ in range(steps):
        loop.poll()
        loop._decode(request)
        held.append(request.length - len(request.prompt))
        if request.generated == early_at:
            loop.record_ahead(request)
        if early_at is not None and request.generated == early_at + 6:
            assert loop.evict_early(request, 4.0) is not None
    return held, make_receipt(request.state.options, request.state.totals, request.generated, held[-1], "none")


@pytest.mark.parametrize("steps", [1, 19, 20, 21, 36, 37, 99, 100, 101, 150, 240])
@pytest.mark.parametrize(
    "options",
    [{}, {"min_kept": 6}, {"min_kept": 16}, {"min_kept": 40}, {"ratio": 2.5}, {"interval": 20, "window": 3}],
    ids=str,
)
def test_a_receipt_tells_what_was_held(steps, options):
    held, receipt = played(steps, **options)
    saw = entries.of_receipt(receipt)
    assert saw is not None
    assert (saw.peak, saw.end) == (max(held), held[-1])
    assert saw.mean == pytest.approx(fmean(held), rel=1e-12)


def test_early_compressions_hold_no_more_than_is_told():
    held, receipt = played(100, early_at=40)
    assert (receipt["early"], receipt["late"]) == (1, 0)
    saw = entries.of_receipt(receipt)
    assert saw is not None
    assert fmean(held) < saw.mean < fmean(held) + 5
    assert saw.peak >= max(held)


@pytest.mark.parametrize(
    "changes",
    [{"late": 1}, {"held": 90}, {"held": 20}, {"compressions": 40}, {"compressions": 1, "early": 1, "held": 101}],
    ids=str,
)
def test_what_a_receipt_does_not_tell_is_not_made_up(changes):
    _, receipt = played(100)
    assert entries.of_receipt(receipt) is not None
    assert entries.of_receipt({**receipt, **changes}) is None


@pytest.mark.parametrize("least", [0, 16, 64, 70])
@pytest.mark.parametrize("generated", [0, 31, 95, 96, 97, 300])
def test_the_mean_at_a_length_is_that_of_all_dates(generated, least):
    budget = Budget(64, 32, 16, least)
    held = entries.play(budget, generated, sum(64 * n > least for n in range(1, 1 + (generated - 32) // 64)))
    assert entries.mean_at(budget, generated) == held.mean
    assert held.peak == max((budget.peak(g) for g in range(generated + 1)), default=0)


def test_between_two_lengths_the_mean_is_in_proportion():
    budget = Budget(64, 32, 16)
    low, high = (entries.mean_at(budget, g) for g in (300, 301))
    assert entries.mean_at(budget, 300.25) == pytest.approx(0.75 * low + 0.25 * high)
    assert entries.uncompressed(9) == entries.Saw(5, 9, 9)
