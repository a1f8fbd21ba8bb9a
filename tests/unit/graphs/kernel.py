"""Triton kernels as launches that the stand-in for a graph sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.unit.graphs.stand_in import Device


class Launched:
    """Stands for a Triton kernel that is launched with arguments by name.

    Args:
        run: does what the kernel does; called with the grid, then as the kernel is.
    """

    def __init__(self, device: Device, run: Callable[..., None]):
        self.device, self.run = device, run

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(**arguments: Any) -> None:
            variant = tuple((name, _specialized(name, value)) for name, value in arguments.items())
            self.device.launch(self.run, variant, grid, **arguments)

        return launch


def store(
    grid: tuple[int, ...], *, queries: torch.Tensor, ring: torch.Tensor, slots: torch.Tensor, entries: torch.Tensor, **_
) -> None:
    """What `triton_ring._store_kernel` does; tests/kernels/test_ring.py compares the two."""
    assert grid[0] == len(queries)
    for query, slot, entry in zip(queries, slots.tolist(), entries.tolist(), strict=True):
        if slot:
            ring[slot, entry] = query


def _specialized(name: str, value: Any) -> object:
    """What Triton compiles apart: constants, types, the number 1, and what is a multiple of 16."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    return value if name.isupper() else (value == 1, value % 16 == 0)
