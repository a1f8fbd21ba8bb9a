"""How long an interval must be, so that compressions leave sliding windows whole."""

from __future__ import annotations

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.contract.refusals.request import refuse_reach
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.budget import Budget, reach_missed, shortest_interval


def test_the_shortest_interval_keeps_as_many_and_none_shorter_does():
    for ratio in (1.1, 1.5, 2, 3, 3.3, 4, 7, 8.7):
        for candidates in range(1, 300):
            interval = shortest_interval(candidates, ratio)
            assert int(interval / ratio) >= candidates > int((interval - 1) / ratio), (ratio, candidates)


@pytest.mark.parametrize(
    ("interval", "window", "ratio", "least", "reach", "missed"),
    [
        (4096, 32, 4, 0, 1056, False),  # the defaults: windows of up to 1057 tokens, one's own included
        (4096, 32, 4, 0, 1057, True),
        (4096, 32, 4, 0, 4095, True),
        (16252, 32, 4, 0, 4095, False),
        (16251, 32, 4, 0, 4095, True),
        (4096, 32, 4, 4063, 4095, False),
        (4096, 32, 4, 4062, 4095, True),
        (64, 8, 2, 0, 40, False),
        (64, 8, 2, 0, 41, True),
        (64, 8, 2.01, 0, 39, False),  # int(P / c), not P / c
        (64, 8, 2.01, 0, 40, True),
        (4, 32, 2, 0, 31, False),  # R alone
        (4096, 32, 4, 0, 0, False),  # no window
    ],
)
def test_what_is_missed(interval, window, ratio, least, reach, missed):
    config = RPCConfig(interval=interval, window=window, ratio=ratio, min_kept=least)
    sentence = reach_missed(config, reach)
    assert (sentence is not None) == missed
    if sentence is not None:
        assert sentence.startswith(f"{reach} entries before a token, of which only the newest ")
        assert f" {max(least, int(interval / ratio)) + window} stay with interval {interval}, " in sentence
        assert (f"min_kept {least} (" in sentence) == (least > 0)
        enough = shortest_interval(reach - window, ratio)
        assert f"(interval {enough} or min_kept {reach - window} would do)" in sentence
        assert reach_missed(RPCConfig(interval=enough, window=window, ratio=ratio), reach) is None
        assert reach_missed(RPCConfig(interval=interval, window=window, min_kept=reach - window), reach) is None


def test_an_early_compression_keeps_what_windows_see():
    options = RequestOptions(True, 64, 8, 4, "all")
    assert Budget.of(options).early_kept(40, 0, 4) == 8
    assert Budget.of(options, reach=20).early_kept(40, 0, 4) == 12
    assert Budget.of(options, reach=20).early_kept(40, 0, 64) == 12
    assert Budget.of(options, reach=16).early_kept(40, 0, 4) == 8


def test_a_requests_options_are_refused_with_the_numbers():
    server = RPCConfig(interval=4096, window=32, ratio=4)
    options = RequestOptions.from_custom_params({"rpc": {"interval": 512}}, server, knows_markers=False)
    with pytest.raises(ConfigError) as caught:
        refuse_reach(options, 511)
    assert str(caught.value) == (
        "custom_params.rpc does not suit this model, whose windows see 511 entries before a token, of which only the "
        "newest 160 stay with interval 512, window 32 and ratio 4 (interval 1916 or min_kept 479 would do) "
        "[request.reach]"
    )
    refuse_reach(RequestOptions.from_custom_params({"rpc": {"interval": 1916}}, server, knows_markers=False), 511)
