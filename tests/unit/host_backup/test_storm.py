"""Rows are saved, restored and dropped in any order: chunks scatter, none is lost, none has two owners."""

import random

import pytest
import torch

from sglang_rpc.memory.host_backup import Backup
from tests.unit.host_backup.pool import CHUNK, backups_of, buffers, held, pool, scattered

CHUNKS = 150
PROMPTS = {"a": 0, "b": 9, "c": 25}  #: key -> length


class Storm:
    """Backups beside a model of what they hold. `expected` is what the pool must hold."""

    def __init__(self, seed: int, device: str):
        self.rng = random.Random(seed)
        self.device = device
        self.layers = pool(accumulated=self.rng.random() < 0.5, device=device)
        self.buffers = buffers(self.layers)
        self.expected = [buffer.clone() for buffer in self.buffers]
        self.backups = backups_of(self.layers, CHUNKS * CHUNK)
        self.ring = torch.zeros(2, 2, 5, 4, device=device)
        self.kept: list[tuple[str, Backup, list[torch.Tensor], float]] = []
        self.saved, self.refused, self.turn = 0, 0, 0

    def run(self, turns: int) -> None:
        for self.turn in range(1, turns + 1):
            if not self.kept or self.rng.random() < 0.6:
                self.save()
            else:
                self.leave(restored=self.rng.random() < 0.7)
            self.decode()

    def save(self) -> None:
        key, generated = self.rng.choice("abc"), self.rng.randint(0, 40)
        row = scattered(PROMPTS[key] + generated, self.turn).to(self.device)
        was = [buffer[row].clone() for buffer in self.buffers]
        known = next((theirs for other, _, theirs, _ in self.kept if other == key), None)
        queries = self.ring[:, 0].fill_(self.turn) if self.rng.random() < 0.3 else None
        entry = sum(buffer[0].nbytes for buffer in self.buffers)
        needed = held(
            0 if known is not None else PROMPTS[key] * entry,
            generated * entry,
            0 if queries is None else queries.nbytes,
        )
        before = self.backups.used
        backup = self.backups.save(row, PROMPTS[key], key, queries)
        assert (backup is None) == (before + needed > self.backups.limit)
        assert self.backups.used == before + (0 if backup is None else needed)
        if backup is None:
            self.refused += 1
            return
        for mine, theirs in zip(was, known or was, strict=True):
            mine[: PROMPTS[key]] = theirs[: PROMPTS[key]]  # the first sharer's prompt is kept
        self.kept.append((key, backup, was, 0 if queries is None else self.turn))
        self.saved += 1

    def leave(self, restored: bool) -> None:
        _, backup, was, recorded = self.kept.pop(self.rng.randrange(len(self.kept)))
        if restored:
            first = self.rng.randint(0, backup.tokens)
            into = scattered(backup.tokens, -self.turn)[first:].to(self.device)
            self.backups.load(backup, first, into)
            for buffer, mine in zip(self.expected, was, strict=True):
                buffer[into] = mine[first:]
            if recorded:
                self.backups.load_queries(backup, self.ring[:, 1])
                assert self.device != "cpu" or (self.ring[:, 1] == recorded).all()
        self.backups.drop(backup)

    def decode(self) -> None:
        """Others write into the pool."""
        slots = torch.tensor([self.rng.randrange(len(self.buffers[0])) for _ in range(3)], device=self.device)
        for each in (self.buffers, self.expected):
            for index, buffer in enumerate(each):
                buffer[slots] = self.turn % 50 + index


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_byte_is_its_rows(device, seed):
    """On a GPU nothing waits for the device, so it holds while copies are in flight."""
    storm = Storm(seed, device)
    storm.run(300)
    for actual, expected in zip(storm.buffers, storm.expected, strict=True):
        assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))
    assert storm.saved > 80
    assert storm.refused > 20
    for _, backup, *_ in storm.kept:
        storm.backups.drop(backup)
    assert storm.backups.used == 0
    (everything,) = storm.backups._arena.take(storm.backups.limit)
    assert len({chunk.data_ptr() for chunk in everything.chunks}) == CHUNKS
