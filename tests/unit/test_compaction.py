"""Moves inside a pool: what is kept lies in the row's first slots, in order, and no other byte has changed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.memory.compaction import move_kept

POOL, KV_HEADS, K_DIM, V_DIM = 160, 2, 6, 4
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.uint8]


def pool(dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random bytes, NaN patterns included: a move must not care what they mean."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(POOL, KV_HEADS, dim * dtype.itemsize) for dim in (K_DIM, V_DIM)]
    keys, values = (torch.randint(0, 256, s, dtype=torch.uint8, generator=generator).view(dtype) for s in shapes)
    return keys, values


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().view(torch.uint8)


def move_by_hand(buffer: torch.Tensor, slots: list[int], kept: list[list[int]], candidates: int) -> torch.Tensor:
    """One slot and one head at a time, from a copy."""
    old, new = bytes_of(buffer), bytes_of(buffer)
    for head in range(buffer.shape[1]):
        own = kept[head] if len(kept) > 1 else kept[0]
        for target, source in enumerate([*own, *range(candidates, len(slots))]):
            new[slots[target], head] = old[slots[source], head]
    return new


def check(dtype: torch.dtype, slots: list[int], kept: list[list[int]], candidates: int) -> None:
    buffers = pool(dtype)
    wanted = [move_by_hand(b, slots, kept, candidates) for b in buffers]
    before = [bytes_of(b) for b in buffers]
    move_kept(buffers, torch.tensor(slots), torch.tensor(kept), candidates)
    written = slots[: len(kept[0]) + len(slots) - candidates]
    others = [slot for slot in range(POOL) if slot not in written]
    for buffer, want, old in zip(buffers, wanted, before, strict=True):
        assert torch.equal(bytes_of(buffer), want)
        assert torch.equal(bytes_of(buffer)[others], old[others])


def scattered_pages(page: int, entries: int, seed: int) -> list[int]:
    """Slots of a row whose pages lie anywhere in the pool; the last page is begun, not full."""
    pages = torch.randperm(POOL // page, generator=torch.Generator().manual_seed(seed)).tolist()
    return [p * page + i for p in pages for i in range(page)][:entries]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, KV_HEADS], ids=["all", "group"])
@pytest.mark.parametrize("page", [1, 4, 16])
def test_scattered_slots(dtype, rows, page):
    slots = scattered_pages(page, 61, seed=page)
    generator = torch.Generator().manual_seed(1)
    kept = [sorted(torch.randperm(50, generator=generator)[:13].tolist()) for _ in range(rows)]
    check(dtype, slots, kept, 50)


@given(st.data())
def test_any_slots_any_kept_set(data):
    candidates = data.draw(st.integers(1, 40))
    window = data.draw(st.integers(1, 20))
    keep = data.draw(st.integers(1, candidates))
    slots = data.draw(st.permutations(range(POOL)))[: candidates + window]
    rows = data.draw(st.sampled_from([1, KV_HEADS]))
    kept = [sorted(data.draw(st.permutations(range(candidates)))[:keep]) for _ in range(rows)]
    check(data.draw(st.sampled_from(DTYPES)), slots, kept, candidates)


@pytest.mark.parametrize("rows", [1, KV_HEADS])
def test_source_and_target_overlap_in_every_entry(rows):
    # All but the first candidate stay: each kept entry moves into the slot its neighbour is read from.
    check(torch.float32, list(range(90, 50, -1)), [list(range(1, 30))] * rows, 30)


def test_keeping_everything_changes_nothing():
    buffers = pool(torch.bfloat16)
    before = [bytes_of(b) for b in buffers]
    move_kept(buffers, torch.arange(10, 40), torch.arange(20)[None], 20)
    assert all(torch.equal(bytes_of(b), old) for b, old in zip(buffers, before, strict=True))


def test_a_group_of_equal_sets_is_the_shared_set():
    slots, kept = torch.randperm(POOL)[:50], torch.arange(0, 40, 3)
    shared, grouped = pool(torch.float32), pool(torch.float32)
    move_kept(shared, slots, kept[None], 40)
    move_kept(grouped, slots, kept.expand(KV_HEADS, -1), 40)
    assert all(torch.equal(bytes_of(a), bytes_of(b)) for a, b in zip(shared, grouped, strict=True))


def test_a_strided_pool_is_written_in_place():
    # SGLang may hand out views of one allocation; a copy written instead of the view would lose the move.
    whole = torch.arange(2 * POOL * KV_HEADS * 4.0).view(POOL, 2, KV_HEADS, 4)
    keys, values = whole[:, 0], whole[:, 1]
    wanted = whole.clone()
    wanted[5], wanted[6] = whole[8], whole[9]
    move_kept((keys, values), torch.arange(5, 10), torch.tensor([[3]]), 4)
    assert torch.equal(whole, wanted)
