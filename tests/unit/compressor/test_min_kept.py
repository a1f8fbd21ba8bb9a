"""The least that a compression keeps: which dates it passes over, and what is held."""

import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from tests.loops.decode_loop import Loop, config
from tests.unit.compressor.checks import assert_all_slots_are_back


def held_after_each(loop: Loop, request, upto: int) -> dict[int, int]:
    """Entries after the prompt that are held right after each compression, by its date."""
    found, compressions = {}, 0
    while request.generated < upto:
        loop.run(1)
        if len(request.done) > compressions:
            compressions = len(request.done)
            found[request.generated] = request.length - len(request.prompt)
    return found


@pytest.mark.parametrize(
    ("least", "held"),
    [
        (0, {20: 8, 36: 12, 52: 16, 68: 20}),
        (4, {20: 8, 36: 12, 52: 16, 68: 20}),
        (10, {20: 14, 36: 14, 52: 16, 68: 20}),  # from the third on, c leaves more
        (15, {20: 19, 36: 19, 52: 19, 68: 20}),
        (16, {36: 20, 52: 20, 68: 20}),  # at 20 there are 16 candidates: none too many
        (40, {52: 44, 68: 44}),
        (60, {68: 64}),
        (64, {}),
    ],
)
def test_each_compression_keeps_at_least_as_many(least, held):
    loop = Loop(config(interval=16, window=4, ratio=4, min_kept=least))
    request = loop.add()
    assert held_after_each(loop, request, 70) == held
    assert loop.compressor.counters.late == 0
    assert_all_slots_are_back(loop)


def test_no_query_is_recorded_for_a_date_that_evicts_nothing():
    loop = Loop(config(interval=16, window=4, ratio=4, min_kept=16))
    loop.add()
    for generated in range(1, 60):
        loop.run(1)
        assert bool(loop.ring.in_use) == (generated in (*range(32, 36), *range(48, 52))), generated


def test_a_request_may_name_its_own():
    loop = Loop(config(interval=16, window=4, ratio=4, min_kept=10))
    plain, own = loop.add(1), loop.add(2, min_kept=0)
    loop.run(25)
    assert (plain.length, own.length) == (5 + 14 + 5, 5 + 8 + 5)
    assert plain.state.receipt(25)["min_kept"] == 10
    assert own.state.receipt(25)["min_kept"] == 0


def test_a_receipt_names_the_first_date_that_would_evict():
    loop = Loop(config(interval=16, window=4, ratio=4, min_kept=40))
    request = loop.add()
    loop.run(30)
    assert request.state.receipt(30)["reason"].startswith("finished before 52 generated tokens")


@pytest.mark.parametrize("ratio", [4, 16])
@pytest.mark.parametrize(("least", "kept"), [(0, None), (11, 11), (40, None)])
def test_an_early_compression_keeps_to_it(least, kept, ratio):
    loop = Loop(config(interval=32, window=4, ratio=4, min_kept=least))
    request = loop.add()
    loop.run(4)
    loop.record_ahead(request)
    loop.run(20)
    c = loop.evict_early(request, ratio)
    if least == 40:
        assert c is None  # there are 20 candidates
    else:
        assert c.keep == (kept or int(20 / ratio))
    loop.run(60)
    assert request.length - len(request.prompt) - (84 - 68) - 4 == max(least, 16)
    assert_all_slots_are_back(loop)


@pytest.mark.parametrize("value", [-1, 1.5, True, "4", 2**24 + 1])
def test_other_values_are_refused(value):
    with pytest.raises(ConfigError, match="min_kept must be an integer from 0 to"):
        RPCConfig(min_kept=value)
    with pytest.raises(ConfigError, match=r"custom_params\.rpc\.min_kept must be an integer from 0 to"):
        Loop(config()).add(min_kept=value)
