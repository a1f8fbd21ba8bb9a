"""One request's record and the receipt it leaves."""

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.runtime.request_state import RequestState, Totals
from sglang_rpc.runtime.think_gate import ThinkGate, ThinkMarkers, TokenMarker
from sglang_rpc.types import NEVER

START, END, WORD = 900, 901, 1
MARKERS = ThinkMarkers(TokenMarker(START), TokenMarker(END))
SETTINGS = {"interval": 64, "window": 8, "ratio": 4, "scope": "think"}


def state(**given) -> RequestState:
    return RequestState(RequestOptions.from_custom_params({"rpc": given}, RPCConfig(**SETTINGS)))


def gated(prompt: list[int], output: list[int], **given) -> RequestState:
    result = state(**given)
    result.gate = ThinkGate(MARKERS, prompt)
    result.gate.advance(output, len(output))
    return result


def test_a_new_request_is_looked_at_at_once():
    fresh = state()
    assert fresh.wake_at == 0 and fresh.active and fresh.slot is None
    assert (fresh.events, fresh.evicted, fresh.totals) == (0, 0, Totals())


def test_the_region_starts_with_the_thought():
    assert state(scope="all").start == 0
    assert state().start is None  # the prompt has not been read
    assert gated([START], []).start == 0
    assert gated([], [WORD]).start is None
    assert gated([], [WORD, START, WORD]).start == 2


@pytest.mark.parametrize(
    ("request_state", "active"),
    [
        (state(), True),
        (state(scope="all"), True),
        (state(enabled=False), False),
        (gated([], [WORD]), True),
        (gated([START], [WORD]), True),
        (gated([START], [END]), False),
    ],
)
def test_active_while_a_compression_may_come(request_state, active):
    assert request_state.active is active
    request_state.refused = "beam search"
    assert not request_state.active


def test_due_dates_count_from_the_start():
    assert state(scope="all").due() == 64 + 8
    late = gated([], [WORD, START])
    assert late.due() == 2 + 64 + 8
    late.events = 3
    assert late.due() == 2 + 4 * 64 + 8
    assert gated([START], [], interval=16, window=2).due() == 18
    with pytest.raises(AssertionError):
        state().due()


def test_reset_forgets_the_row_and_remembers_the_rest():
    used = gated([START], [WORD])
    used.events, used.evicted, used.wake_at, used.totals.compressions = 2, 96, 500, 2
    gate = used.gate
    used.reset()
    assert (used.events, used.evicted, used.wake_at) == (0, 0, 0)
    assert used.gate is gate and used.totals.compressions == 2
    used.slot = 1
    with pytest.raises(AssertionError, match="given back with the row"):
        used.reset()


def test_requests_do_not_share_totals():
    first, second = state(), state()
    first.totals.evicted += 5
    assert second.totals.evicted == 0


def test_the_receipt_of_a_compressed_request():
    used = gated([START], [WORD])
    used.totals = Totals(compressions=2, evicted=96, slots_freed=90, catch_ups=1)
    used.evicted = 48
    assert used.receipt(200) == {
        "compressions": 2,
        "generated": 200,
        "held": 152,
        "evicted": 96,
        "slots_freed": 90,
        "catch_ups": 1,
        **SETTINGS,
    }


def test_the_receipt_shows_the_requests_own_settings():
    receipt = state(interval=32, window=4, ratio=2.5, scope="all").receipt(10)
    assert (receipt["interval"], receipt["window"], receipt["ratio"], receipt["scope"]) == (32, 4, 2.5, "all")
    assert (receipt["generated"], receipt["held"], receipt["evicted"]) == (10, 10, 0)


@pytest.mark.parametrize(
    ("request_state", "reason"),
    [
        (state(enabled=False), "switched off by the request"),
        (state(), "no think segment opened"),
        (gated([], [WORD]), "no think segment opened"),
        (state(scope="all"), "finished before 72 generated tokens, where the first compression is due"),
        (gated([], [WORD, START]), "finished before 74 generated tokens, where the first compression is due"),
        (
            gated([START], [WORD, END]),
            "the think segment ended before 72 generated tokens, where the first compression is due",
        ),
    ],
)
def test_why_nothing_was_compressed(request_state, reason):
    assert request_state.receipt(40)["reason"] == reason
    request_state.refused = "cannot be compressed, because of this"
    assert request_state.receipt(40)["reason"] == "cannot be compressed, because of this"


def test_never_is_out_of_reach_but_fits_an_int64():
    assert 2**40 < NEVER < 2**63
