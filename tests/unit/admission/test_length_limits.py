"""How long a request may get, and the sentence that refuses a longer one."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.budget import Budget
from sglang_rpc.runtime.admission import Plan, longest, refuse_unfit
from tests.unit.admission.plays import play


def options(interval=16, window=4, ratio: float = 4) -> RequestOptions:
    config = RPCConfig(interval=interval, window=window, ratio=ratio, scope="all")
    return RequestOptions.from_custom_params(None, config)


budgets = st.integers(2, 40).flatmap(
    lambda interval: st.tuples(st.just(interval), st.integers(1, 30), st.floats(1, interval, exclude_min=True))
)


@settings(max_examples=150)
@given(budgets, st.integers(0, 200), st.integers(-5, 250))
def test_the_longest_that_fits_is_what_a_search_finds(budget, want, room):
    result = longest(want, room, options(*budget))
    fit = [n for n in range(want + 1) if play_highest(n, budget) <= room]
    assert result == max(fit, default=0)


def play_highest(tokens: int, budget: tuple[int, int, float]) -> int:
    interval, window, ratio = budget
    new = dict(held=0, generated=0, compresses_at=interval + window, interval=interval, window=window)
    return max(play(Plan(**new, budget_step=int(interval / ratio), remaining=tokens, ends=True)))


@pytest.mark.parametrize(
    ("room", "fits"), [(-1, 0), (0, 0), (1, 1), (19, 19), (20, 32), (21, 33), (23, 35), (24, 48), (25, 49), (28, 64)]
)
def test_the_longest_at_the_due_dates(room, fits):
    assert longest(1000, room, options()) == fits
    assert longest(fits, room, options()) == fits
    assert longest(max(0, fits - 1), room, options()) == max(0, fits - 1)


def test_what_fits_is_not_refused():
    peak = Budget(16, 4, 4).peak(1000)
    refuse_unfit(1000, prompt=10, room=peak, pool=500, options=options())
    refuse_unfit(0, prompt=10, room=0, pool=10, options=options())
    with pytest.raises(ConfigError):
        refuse_unfit(1000, prompt=10, room=peak - 1, pool=500, options=options())


def test_the_refusal_is_one_sentence_with_the_whole_arithmetic():
    # T 6. Before the 62nd compression 61 * 6 + 4 + 16 are held; 123 are when 15 have come after the 18th.
    with pytest.raises(ConfigError) as caught:
        refuse_unfit(1000, prompt=37, room=123, pool=176, options=options(16, 4, 2.5))
    assert caught.value.code == "request.max_new_tokens"
    assert caught.value.sentence == (
        "1000 new tokens do not fit: with interval 16, window 4 and ratio 2.5 they hold up to 386 KV entries, and "
        "beside this prompt of 37 tokens the pool of 176 slots has room for 123; ask for at most 303 new tokens, a "
        "higher ratio or a shorter interval, or start the server with more memory"
    )


@given(budgets, st.integers(1, 500), st.integers(0, 300), st.integers(-20, 60))
def test_a_refusal_advises_the_most_that_fits(budget, want, prompt, room):
    pool, own = prompt + 80, options(*budget)
    peak = play_highest(want, budget)
    if peak <= room:
        refuse_unfit(want, prompt, room, pool, own)
        return
    with pytest.raises(ConfigError) as caught:
        refuse_unfit(want, prompt, room, pool, own)
    message = str(caught.value)
    assert f"up to {peak} KV entries" in message
    assert f"has room for {max(0, room)};" in message
    assert "\n" not in message
    advised = int(re.search(r"at most (\d+) new tokens", message)[1])
    assert play_highest(advised, budget) <= max(0, room) < play_highest(advised + 1, budget)
