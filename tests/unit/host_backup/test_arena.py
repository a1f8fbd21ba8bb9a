"""Host memory is allocated once, in powers of two, and no retraction allocates any."""

import logging

import pytest
import torch

from sglang_rpc.memory import arena
from sglang_rpc.memory.arena import Arena
from tests.unit.host_backup.pool import CHUNK, ENTRY, backups_of, held, pool, scattered


class Allocated:
    """Stands in for torch.empty in the arena: counts, and fails after `most` allocations."""

    def __init__(self, monkeypatch, most: int = 10**6):
        self.sizes: list[int] = []
        self.pinned: set[bool] = set()
        self.most, self.empty = most, torch.empty
        monkeypatch.setattr(arena.torch, "empty", self)

    def __call__(self, *size, pin_memory: bool | None = None, **others) -> torch.Tensor:
        if pin_memory is None:  # not the arena's
            return self.empty(*size, **others)
        if len(self.sizes) == self.most:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ...")
        self.sizes += size
        self.pinned.add(pin_memory)
        return self.empty(*size, **others)


@pytest.mark.parametrize("pinned", [True, False])
def test_all_memory_is_asked_for_in_powers_of_two(monkeypatch, pinned):
    monkeypatch.setattr(arena, "SEGMENT_BYTES", 16 * CHUNK)
    allocated = Allocated(monkeypatch)
    for chunks in range(100):
        allocated.sizes.clear()
        got = Arena(chunks * CHUNK + CHUNK - 1, pinned=pinned, chunk_bytes=CHUNK)
        assert (got.capacity, got.used) == (chunks * CHUNK, 0)
        assert sum(allocated.sizes) == got.capacity
        assert all(size.bit_count() == 1 and size <= 16 * CHUNK for size in allocated.sizes)
        assert len(allocated.sizes) <= chunks // 16 + 4
    assert allocated.pinned == {pinned}


def test_a_chunk_is_never_rounded_up():
    with pytest.raises(AssertionError, match="rounded up"):
        Arena(1000, pinned=False, chunk_bytes=100)


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_host_that_has_less_gives_what_it_has(monkeypatch, caplog, most):
    monkeypatch.setattr(arena, "SEGMENT_BYTES", 16 * CHUNK)
    Allocated(monkeypatch, most)
    with caplog.at_level(logging.WARNING):
        got = Arena(100 * CHUNK, pinned=True, chunk_bytes=CHUNK)
    assert got.capacity == most * 16 * CHUNK
    assert caplog.messages == ["RPC: the host gave no more memory for backups: CUDA error: out of memory"]
    assert got.take(got.capacity + 1) is None
    assert len(got.take(got.capacity)[0].chunks) == most * 16


def test_a_retraction_allocates_no_host_memory(monkeypatch):
    layers = pool()
    allocated = Allocated(monkeypatch)
    backups = backups_of(layers, 64 * CHUNK)
    at_start = list(allocated.sizes)
    assert sum(at_start) == backups.limit == 64 * CHUNK
    there = {chunk.data_ptr() for chunk in backups._arena._free}
    for turn in range(50):
        queries = torch.zeros(99)
        backup = backups.save(scattered(40, seed=turn), 12, "key", queries)
        for part in (backup.prompt.bytes, backup.generated.bytes, backup.queries):
            assert {chunk.data_ptr() for chunk in part.chunks} <= there
        backups.load(backup, 5, scattered(40, seed=turn)[5:])
        backups.load_queries(backup, queries)
        backups.drop(backup)
    assert allocated.sizes == at_start


@pytest.mark.gpu
def test_a_retraction_pins_nothing():
    layers = pool(device="cuda")
    backups = backups_of(layers, 64 * CHUNK)
    assert all(chunk.is_pinned() for chunk in backups._arena._free)
    backup = backups.save(scattered(40, seed=1).cuda(), 12, "key", None)
    before = torch.cuda.host_memory_stats()["num_host_alloc"]
    for turn in range(50):
        backups.drop(backup)
        backup = backups.save(scattered(40, seed=turn).cuda(), 12, "key", None)
        backups.load(backup, 0, scattered(40, seed=turn).cuda())
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == before


def test_shrunk_it_keeps_to_less():
    backups = backups_of(pool(), 64 * CHUNK)
    backups.lower(100 * CHUNK)
    assert backups.limit == 64 * CHUNK
    backups.lower(10 * CHUNK + 1)
    assert (backups.limit, backups.used) == (10 * CHUNK, 0)
    assert backups.save(torch.arange(20), 0, "key", torch.zeros(CHUNK, dtype=torch.uint8)) is None
    assert backups.save(torch.arange(20), 0, "key", None) is not None
    assert backups.used == held(20 * ENTRY) == 10 * CHUNK
    with pytest.raises(AssertionError, match="are taken"):
        backups.lower(0)
