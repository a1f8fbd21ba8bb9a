"""Queries of rows that verify drafts: the window is of accepted tokens, whatever was rejected beside them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.hooks import capture
from sglang_rpc.memory.query_ring import QueryRing
from tests.fakes.batches import ForwardBatch, ForwardMode

REJECTED = -1.0


def make(window: int, drafts: int) -> QueryRing:
    return QueryRing(
        layers=1, slots=2, rows=4, window=window, heads=1, head_dim=1, dtype=torch.float32, device="cpu", drafts=drafts
    )


def verify(ring: QueryRing, row: int, length: int, accepted: int) -> None:
    """A step that verifies n rows from position `length` on, of which so many are tokens. A query is its position."""
    positions = torch.arange(length, length + ring.drafts)
    queries = torch.where(torch.arange(ring.drafts) < accepted, positions.float(), REJECTED)
    # Beside it a row that owns no slot, and one of padding.
    step = ForwardBatch(
        ForwardMode.TARGET_VERIFY, torch.tensor([1, row, 0]), torch.cat([positions + 5, positions, positions * 0])
    )
    hook = capture.Capture(ring, 0, lambda: False)
    hook(None, (torch.cat([queries * 0, queries, queries * 0])[:, None], None, None, step), {})


@given(st.integers(1, 9), st.integers(2, 6), st.integers(0, 50), st.data())
def test_the_window_is_of_accepted_tokens(window, drafts, prompt, data):
    ring = make(window, drafts)
    length = prompt
    slot = ring.acquire(3)
    while length < prompt + 3 * window:
        accepted = data.draw(st.integers(1, drafts))
        verify(ring, 3, length, accepted)
        length += accepted
        if length >= prompt + window:
            last = ring.last(slot, length, window).flatten().tolist()
            assert last == list(range(length - window, length))


def test_with_fewer_entries_a_rejected_query_would_fall_into_the_window():
    """One token is accepted in each step of 4 rows: the others lie up to 3 positions ahead."""
    for entries, whole in ((4 + 3, True), (4 + 2, False)):
        ring = make(4, entries - 4)
        slot = ring.acquire(3)
        for length in range(8):
            where = ring.where(torch.tensor([3] * 4), torch.arange(length, length + 4))
            ring.store(0, where, torch.tensor([length] + [REJECTED] * 3).view(4, 1, 1).float())
        assert (ring.last(slot, 8, 4).flatten().tolist() == [4, 5, 6, 7]) == whole


@pytest.mark.parametrize(("window", "drafts"), [(8, 0), (8, 4)])
def test_a_slot_has_as_many_bytes_as_its_entries(window, drafts):
    ring = make(window, drafts)
    shape = dict(layers=1, window=window, heads=1, head_dim=1, dtype=torch.float32, drafts=drafts)
    assert ring.buffer[:, 0].nbytes == QueryRing.slot_bytes(**shape)
    assert ring.entries == window + drafts
