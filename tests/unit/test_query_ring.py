"""The query ring against a plain list of everything that was ever stored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.memory.query_ring import QueryRing


def make(slots=2, rows=6, window=4, layers=2, heads=3, head_dim=2, dtype=torch.float32) -> QueryRing:
    return QueryRing(
        layers=layers, slots=slots, rows=rows, window=window, heads=heads, head_dim=head_dim, dtype=dtype, device="cpu"
    )


def store(ring: QueryRing, rows: list[int], positions: list[int]) -> None:
    """One step: each row's query is tagged with its layer, row and position."""
    where = ring.where(torch.tensor(rows), torch.tensor(positions))
    for layer in range(ring.buffer.shape[0]):
        queries = torch.stack([tag(ring, layer, r, p) for r, p in zip(rows, positions, strict=True)])
        ring.store(layer, where, queries.flatten(1))


def tag(ring: QueryRing, layer: int, row: int, position: int) -> torch.Tensor:
    heads, head_dim = ring.buffer.shape[3:]
    base = torch.arange(heads * head_dim, dtype=ring.buffer.dtype).view(heads, head_dim)
    return base + 10_000 * layer + 1_000 * row + 10 * position


def expected(ring: QueryRing, row: int, length: int, window: int) -> torch.Tensor:
    layers = range(ring.buffer.shape[0])
    return torch.stack(
        [torch.stack([tag(ring, layer, row, p) for p in range(length - window, length)]) for layer in layers]
    )


@given(st.integers(1, 9), st.integers(0, 60), st.integers(1, 40), st.data())
def test_last_gives_the_newest_queries_oldest_first(ring_window, first, stored, data):
    ring = make(window=ring_window)
    slot = ring.acquire(3)
    for position in range(first, first + stored):
        store(ring, [3], [position])
    window = data.draw(st.integers(1, min(ring_window, stored)))
    assert torch.equal(ring.last(slot, first + stored, window), expected(ring, 3, first + stored, window))


def test_rows_at_different_positions_in_one_step_stay_apart():
    ring = make(slots=2, window=3)
    slots = {row: ring.acquire(row) for row in (1, 4)}
    for step in range(7):
        store(ring, [4, 2, 1], [10 + step, 50 + step, step])
    for row, length in ((1, 7), (4, 17)):
        assert torch.equal(ring.last(slots[row], length, 3), expected(ring, row, length, 3))


def test_queries_in_parts_are_one_entry():
    ring = make(heads=3, head_dim=8)
    slot = ring.acquire(2)
    queries = torch.randn(2, 3, 8)
    where = ring.where(torch.tensor([1, 2]), torch.tensor([7, 5]))
    ring.store(1, where, queries[..., :5], queries[..., 5:])
    assert torch.equal(ring.buffer[1, slot, 5 % 4], queries[1])
    with pytest.raises(AssertionError, match="queries of 5 dims in a ring for 8"):
        ring.store(1, where, queries[..., :5])


def test_a_row_without_a_slot_writes_to_the_dummy_slot_only():
    ring = make()
    slot = ring.acquire(1)
    store(ring, [1], [0])
    before = ring.buffer[:, 1:].clone()
    store(ring, [0, 2, 3], [0, 1, 2])
    assert torch.equal(ring.buffer[:, 1:], before)
    assert slot != 0


def test_slots_run_out_and_come_back():
    ring = make(slots=2)
    assert ring.in_use == 0
    first, second = ring.acquire(0), ring.acquire(5)
    assert sorted((first, second)) == [1, 2]
    assert ring.in_use == 2
    assert ring.acquire(3) is None
    assert ring.in_use == 2
    assert ring.slot_of_row[3] == 0
    ring.release(first)
    assert ring.in_use == 1
    assert ring.slot_of_row.tolist() == [0, 0, 0, 0, 0, second]
    assert ring.acquire(3) == first
    assert ring.slot_of_row[3] == first


def test_a_released_row_no_longer_writes_into_its_old_slot():
    ring = make(slots=1)
    slot = ring.acquire(1)
    store(ring, [1], [0])
    ring.release(slot)
    assert ring.acquire(2) == slot
    for position in range(4):
        store(ring, [1, 2], [position, position])
    assert torch.equal(ring.last(slot, 4, 4), expected(ring, 2, 4, 4))


def test_releasing_twice_is_an_error():
    ring = make()
    slot = ring.acquire(1)
    ring.release(slot)
    with pytest.raises(KeyError):
        ring.release(slot)
    assert ring.in_use == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_slots_are_conserved(moves):
    ring = make(slots=3)
    held: dict[int, int] = {}
    for take, row in moves:
        if take and row not in held:
            slot = ring.acquire(row)
            assert (slot is None) == (len(held) == 3)
            if slot is not None:
                assert slot not in held.values()
                assert 1 <= slot <= 3
                held[row] = slot
        elif not take and row in held:
            ring.release(held.pop(row))
        assert ring.in_use == len(held)
        assert ring.slot_of_row.tolist() == [held.get(r, 0) for r in range(6)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_bytes_are_counted_with_the_dummy_slot(dtype):
    ring = make(slots=5, dtype=dtype)
    assert ring.nbytes == 6 * QueryRing.slot_bytes(2, 4, 3, 2, dtype) == 6 * 2 * 4 * 3 * 2 * dtype.itemsize
    assert ring.buffer.dtype == dtype


def test_queries_come_as_heads_or_flat():
    flat, heads = make(), make()
    for ring, shape in ((flat, (1, 6)), (heads, (1, 3, 2))):
        ring.acquire(0)
        queries = torch.arange(6.0).view(shape)
        ring.store(0, ring.where(torch.tensor([0]), torch.tensor([5])), queries)
    assert torch.equal(flat.buffer, heads.buffer)
    assert torch.equal(flat.buffer[0, 1, 1].flatten(), torch.arange(6.0))
