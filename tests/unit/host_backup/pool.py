"""A small pool of random bytes, and backups of its rows in small chunks."""

from __future__ import annotations

import torch

from sglang_rpc.memory.host_backup import Backup, HostBackup
from sglang_rpc.types import KVLayer

POOL, LAYERS, KV_HEADS, K_DIM, V_DIM = 96, 3, 2, 6, 4
#: storage dtype -> what it stands for
DTYPES = {
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float16,
    torch.float32: torch.float32,
    torch.uint8: torch.float8_e4m3fn,
}
ENTRY = LAYERS * KV_HEADS * (K_DIM + V_DIM) * 2  #: bytes of one entry in bfloat16, all layers
CHUNK = 256  #: bytes: about two entries, and an entry often lies in two chunks
AMPLE = 10**6


def pool(dtype: torch.dtype = torch.bfloat16, seed: int = 0, accumulated: bool = False, device="cpu") -> list[KVLayer]:
    """Random bytes, NaN patterns included: a copy must not care what they mean."""
    generator = torch.Generator().manual_seed(seed)

    def buffer(dim: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        shape = (POOL, KV_HEADS, dim * dtype.itemsize)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).view(dtype).to(device)

    return [
        KVLayer(
            buffer(K_DIM),
            buffer(V_DIM),
            DTYPES[dtype],
            1.0,
            accumulated=buffer(1, torch.float32) if accumulated else None,
        )
        for _ in range(LAYERS)
    ]


def backups_of(layers: list[KVLayer], limit: int = AMPLE, chunk_bytes: int = CHUNK) -> HostBackup:
    return HostBackup(layers, limit, chunk_bytes=chunk_bytes)


def buffers(layers: list[KVLayer]) -> list[torch.Tensor]:
    return [buffer for layer in layers for buffer in layer.buffers]


def bytes_of(layers: list[KVLayer]) -> list[torch.Tensor]:
    """The whole pool, as bytes, on the CPU."""
    return [buffer.cpu().clone().view(torch.uint8) for buffer in buffers(layers)]


def overwrite(layers: list[KVLayer], seed: int) -> None:
    others = pool(layers[0].keys.dtype, seed, layers[0].accumulated is not None)
    for buffer, other in zip(buffers(layers), buffers(others), strict=True):
        buffer.copy_(other)


def scattered(entries: int, seed: int) -> torch.Tensor:
    return torch.randperm(POOL, generator=torch.Generator().manual_seed(seed))[:entries]


def held(*sizes: int, chunk: int = CHUNK) -> int:
    """Bytes of the chunks that parts of these sizes lie in."""
    return sum(-(-size // chunk) for size in sizes) * chunk


def assert_restored(
    layers: list[KVLayer], backups: HostBackup, backup: Backup, first: int, was: list, row: torch.Tensor
) -> None:
    """Restored after `first` into other slots, the pool holds the row's bytes there, and elsewhere what it held."""
    into = scattered(backup.tokens, seed=99)[first:]
    wanted = bytes_of(layers)
    for new, old in zip(wanted, was, strict=True):
        new[into] = old[row[first:]]
    backups.load(backup, first, into.to(layers[0].keys.device))
    assert all(torch.equal(actual, want) for actual, want in zip(bytes_of(layers), wanted, strict=True))
