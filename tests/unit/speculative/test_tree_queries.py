"""Queries of rows that verify a tree: those of the accepted path come to stand at its positions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.hooks import capture
from sglang_rpc.memory.query_ring import QueryRing, TreeQueries
from tests.fakes.batches import ForwardBatch, ForwardMode

REJECTED = -1.0
IDLE = 1  #: a row that owns no slot


def make(window: int, drafts: int) -> tuple[QueryRing, TreeQueries]:
    ring = QueryRing(
        layers=1, slots=2, rows=5, window=window, heads=1, head_dim=1, dtype=torch.float32, device="cpu", drafts=drafts
    )
    return ring, TreeQueries(ring)


def verify(ring: QueryRing, trees: TreeQueries, starts: dict[int, int], paths: dict[int, list[int]]) -> None:
    """A step of rows with text up to `starts`, of whose nodes those of `paths` are accepted. A query is 1000 times its
    row and its position; siblings share positions."""
    n, rows = ring.drafts, [*starts]
    queries, positions = torch.full((len(rows), n), REJECTED), torch.zeros(len(rows), n, dtype=torch.int64)
    index = torch.full((len(rows), n), -1)
    for number, row in enumerate(rows):
        positions[number] = starts[row] + (torch.arange(n) + 1) // 2
        for depth, node in enumerate(paths[row]):
            queries[number, node] = 1000 * row + starts[row] + depth
            index[number, depth] = number * n + node
    step = ForwardBatch(
        ForwardMode.TARGET_VERIFY, torch.tensor([*rows, 0]), torch.cat([positions.flatten(), torch.zeros(n)])
    )
    padded = torch.cat([queries.flatten(), torch.full((n,), REJECTED)])
    capture.Capture(ring, 0, lambda: False)(None, (padded[:, None], None, None, step), {})
    lens = torch.tensor([len(paths[row]) for row in rows], dtype=torch.int32)
    trees.accept(torch.tensor(rows), torch.tensor([*starts.values()]), lens, index)


@given(st.integers(1, 9), st.integers(2, 6), st.data())
def test_the_window_is_of_accepted_tokens(window, drafts, data):
    ring, trees = make(window, drafts)
    lengths = {3: 17, IDLE: 40, 4: 8}
    slots = {row: ring.acquire(row) for row in (3, 4)}
    for _ in range(3 * window):
        paths = {row: [0, *sorted(data.draw(st.sets(st.integers(1, drafts - 1))))] for row in lengths}
        verify(ring, trees, lengths, paths)
        lengths = {row: length + len(paths[row]) for row, length in lengths.items()}
    for row, slot in slots.items():
        last = ring.last(slot, lengths[row], window).flatten().tolist()
        assert last == [1000 * row + position for position in range(lengths[row] - window, lengths[row])]


def test_what_stands_after_the_accepted_ones_is_not_read():
    """As the cut leaves it."""
    ring, trees = make(4, 3)
    slot = ring.acquire(2)
    assert slot is not None
    trees.buffer[:, slot] = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    ring.buffer.fill_(REJECTED)
    trees.accept(torch.tensor([2]), torch.tensor([5]), torch.tensor([2]), torch.tensor([[0, 2, -1]]))
    assert ring.buffer[0, slot, :, 0, 0].tolist() == [-1, -1, -1, -1, -1, 1, 3]


def test_its_bytes_are_the_rings_too():
    ring, trees = make(4, 3)
    assert trees.buffer[:, 0].nbytes == QueryRing.slot_bytes(1, 0, 1, 1, torch.float32, drafts=3)
    assert ring.nbytes == ring.buffer.nbytes + trees.buffer.nbytes
