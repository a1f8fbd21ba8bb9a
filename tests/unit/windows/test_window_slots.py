"""Which slots of window layers a compression frees and moves, against a model that knows each slot's entry."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.memory.window_slots import SlotMove, move_slots

ROWS_OWN = 3  #: pages of other rows, whose slots must not change


@dataclass
class Row:
    """One row in both pools. Slots of window layers are known by the entry that lies in them."""

    page: int
    slots: torch.Tensor  #: [positions of whole pages]
    mapping: torch.Tensor
    entry_of: dict[int, int]  #: by slot of window layers: the row position at which it was written
    strange: list[int]  #: slots of other rows

    def peer(self, position: int) -> int:
        """The window layers' slot of a row position; 0: none."""
        return int(self.mapping[self.slots[position]])


@dataclass(frozen=True)
class Case:
    """A row before a compression."""

    page: int
    begin: int  #: the first candidate
    end: int
    evicted: int
    cursor: int
    owned: int  #: positions that the prefix tree owns: whole pages of the prompt
    with_slots: bool  #: whether these have slots of window layers


@st.composite
def cases(draw) -> Case:
    page = draw(st.sampled_from([1, 2, 4]))
    begin = draw(st.integers(0, 11))
    evicted = page * draw(st.integers(1, 4))
    end = begin + evicted + draw(st.integers(1, 9))
    return Case(
        page=page,
        begin=begin,
        end=end,
        evicted=evicted,
        cursor=page * draw(st.integers(0, (end - 1) // page)),
        owned=page * draw(st.integers(0, begin // page)),
        with_slots=draw(st.booleans()),
    )


def laid_out(case: Case) -> Row:
    pages = -(-case.end // case.page)
    generator = torch.Generator().manual_seed(case.begin + 20 * case.end)

    def some() -> torch.Tensor:  # page 0 is nobody's
        numbers = torch.randperm(pages + ROWS_OWN, generator=generator) + 1
        return (numbers[:, None] * case.page + torch.arange(case.page)).flatten()

    slots, peers = some(), some()
    mapping = torch.zeros(len(slots) + case.page + 1, dtype=torch.int64)
    mapping[-1] = -1
    own = pages * case.page
    mapping[slots[own:]] = peers[own:]
    row = Row(case.page, slots[:own], mapping, {}, slots[own:].tolist())
    for position in range(case.end):
        if position >= max(case.cursor, case.owned) or (position < case.owned and case.with_slots):
            mapping[slots[position]] = peers[position]
            row.entry_of[int(peers[position])] = position
    return row


def pages_of(slots: list[int], page: int) -> set[int]:
    return {slot // page for slot in slots}


def compress(row: Row, case: Case) -> tuple[SlotMove, set[int]]:
    """As the hook does it, with SGLang's frees played; returns the pages of window layers that were freed."""
    move = SlotMove.of(case.begin, case.end, case.evicted, case.cursor, case.page)
    first, end = move.freed
    assert first % case.page == end % case.page == 0
    freed = [row.peer(position) for position in range(first, end)]
    assert 0 not in freed, "a slot that is not there would be freed"
    row.mapping[row.slots[first:end]] = 0
    move_slots(row.mapping, row.slots.int(), move, case.evicted)
    assert len(set(freed)) == len(freed)
    return move, pages_of(freed, case.page)


@given(cases())
def test_each_slot_is_free_or_has_its_entry(case):
    row = laid_out(case)
    before = [row.peer(position) for position in range(case.end)]
    others = row.mapping[row.strange].clone()
    move, freed = compress(row, case)
    length, first = case.end - case.evicted, case.begin // case.page * case.page
    after = [row.peer(position) for position in range(len(row.slots))]

    live = range(max(move.cursor, case.owned), length)
    assert all(after[position] for position in live), "a live entry has no slot"
    assert not any(after[case.owned : max(move.cursor, case.owned)]), "a slot before the cursor is lost"
    assert not any(after[length:]), "the freed end has slots"
    assert after[: case.owned] == before[: case.owned], "the tree's slots have changed"
    assert torch.equal(row.mapping[row.strange], others)
    assert row.mapping[-1] == -1

    held = [slot for slot in after if slot]
    assert len(set(held)) == len(held), "two entries share a slot"
    assert pages_of(held, case.page) | freed == pages_of([slot for slot in before if slot], case.page), "a leak"
    assert not pages_of(held, case.page) & freed, "a freed page is held"
    for position in live:
        assert after[position] % case.page == position % case.page, "a page has its entries in another order"
        # The page of the first candidate moves as a whole: of the entries before that one nothing is left.
        moved = position >= first
        assert row.entry_of[after[position]] == position + case.evicted * moved


@given(cases())
def test_a_window_sees_the_newest_entries(case):
    row = laid_out(case)
    move, _ = compress(row, case)
    length = case.end - case.evicted
    window = [row.peer(position) for position in range(max(move.cursor, case.begin), length)]
    assert [row.entry_of[slot] for slot in window] == list(range(case.end - len(window), case.end))
    # What was live of the newest entries is still there.
    assert len(window) == min(case.end - case.cursor, length - case.begin)


@given(cases(), st.data())
def test_compressed_again(case, data):
    """The row goes on from its new cursor, grows, loses entries to SGLang, and is compressed again."""
    row = laid_out(case)
    move, _ = compress(row, case)
    length = case.end - case.evicted
    again = case.page * data.draw(st.integers(0, (length - case.begin - 1) // case.page))
    if not again:
        return
    cursor = case.page * data.draw(st.integers(move.cursor // case.page, max(move.cursor, length - 1) // case.page))
    for position in range(max(move.cursor, case.owned), max(cursor, case.owned)):
        row.mapping[row.slots[position]] = 0
    later = Case(case.page, case.begin, length, again, cursor, case.owned, case.with_slots)
    second, _ = compress(row, later)
    window = [row.peer(position) for position in range(max(second.cursor, case.begin), length - again)]
    assert [row.entry_of[slot] for slot in window] == list(range(case.end - len(window), case.end))


@pytest.mark.parametrize(
    ("cursor", "freed", "moved", "after"),
    [
        (0, (16, 32), (32, 44), 0),  # nothing has left a window
        (16, (16, 32), (32, 44), 16),
        (24, (24, 32), (32, 44), 16),  # some of what is evicted has
        (32, (32, 32), (32, 44), 16),
        (40, (32, 32), (40, 44), 24),  # all of it, and more
    ],
)
def test_by_hand(cursor, freed, moved, after):
    """A prompt of 18, 4 kept before the page's end, 16 evicted: pages of 8."""
    assert SlotMove.of(18, 44, 16, cursor, 8) == SlotMove(freed, moved, (28, 44), after)


def test_no_page_is_split():
    with pytest.raises(AssertionError, match="17 entries are no whole pages of 8"):
        SlotMove.of(18, 44, 17, 0, 8)
    with pytest.raises(AssertionError, match="the cursor 9 splits a page of 8"):
        SlotMove.of(18, 44, 16, 9, 8)
