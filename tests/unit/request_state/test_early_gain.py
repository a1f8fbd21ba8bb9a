"""How many entries an early compression would evict."""

import pytest

from sglang_rpc.runtime.decision import early_gain
from tests.unit.request_state.states import END, START, WORD, state, thinking


@pytest.mark.parametrize(
    ("generated", "ratio", "gain"),
    [
        (8, 4, -1),  # the window alone, and one entry would have to be kept
        (9, 4, 0),
        (10, 4, 1),  # of two, one stays
        (24, 4, 12),  # of 16, 4 stay
        (24, 16, 15),
        (24, 1000, 15),  # never none
        (71, 4, 63 - 15),
        (72, 4, 64 - 16),  # as on the due date
    ],
)
def test_what_an_early_compression_would_evict(generated, ratio, gain):
    assert early_gain(state(scope="all"), generated, ratio) == gain


@pytest.mark.parametrize(
    ("generated", "ratio", "gain"), [(72, 4, 0), (73, 4, 1), (76, 4, 3), (76, 8, 12), (136, 4, 48)]
)
def test_and_what_a_second_one_would(generated, ratio, gain):
    used = state(scope="all")
    used.clock.events, used.clock.evicted = 1, 48  # compressed at 72: 16 and the window are held
    assert early_gain(used, generated, ratio) == gain


def test_what_is_gone_cannot_be_gained_again():
    used = state(scope="all")
    assert early_gain(used, 48, 4) == 30
    used.clock.evicted = 30
    assert [early_gain(used, 48 + more, 4) for more in range(9)] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert early_gain(used, 48, 2) < 0  # it has been compressed at more than that


def test_only_a_thought_in_progress_has_something_to_gain():
    assert early_gain(thinking([WORD, START], [WORD] * 24), 24, 4) == 12
    assert early_gain(thinking([], [WORD] * 9 + [START]), 10 + 24, 4) == 12  # after its start
    assert early_gain(thinking([], [WORD] * 100), 100, 4) == 0
    assert early_gain(state(), 100, 4) == 0  # the prompt has not been read
    assert early_gain(thinking([START], [WORD] * 30 + [END]), 100, 4) == 0
    assert early_gain(state(scope="all", enabled=False), 100, 4) == 0
    refused = state(scope="all")
    refused.refused = "a reason"
    assert early_gain(refused, 100, 4) == 0
