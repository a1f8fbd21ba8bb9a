"""The hook and the ring, each broken in one way that a GPU would show late, or never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sglang_rpc.hooks.capture import Capture
from sglang_rpc.hooks.positions import make_logical
from sglang_rpc.hooks.step import attention_call
from sglang_rpc.memory.query_ring import QueryRing

Where = tuple[torch.Tensor, torch.Tensor]


class InNoWarmUp(Capture):
    def __init__(self, ring: QueryRing, index: int, _for_a_graph: Callable[[], bool]):
        super().__init__(ring, index, lambda: torch.cuda.is_current_stream_capturing())


class InNoCapture(Capture):
    def __init__(self, ring: QueryRing, index: int, for_a_graph: Callable[[], bool]):
        super().__init__(ring, index, lambda: for_a_graph() and not torch.cuda.is_current_stream_capturing())


class OnlyWhileRecording(Capture):
    def __init__(self, ring: QueryRing, index: int, _for_a_graph: Callable[[], bool]):
        super().__init__(ring, index, lambda: False)


class WhereOfAWarmUp(Capture):
    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward_batch, _ = attention_call(args, kwargs)
        known = getattr(forward_batch, "rpc_where", None)
        super().__call__(layer, args, kwargs)
        if known is not None:
            forward_batch.rpc_where = known


class PhysicalHook(Capture):
    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward_batch, _ = attention_call(args, kwargs)
        logical, forward_batch.positions = forward_batch.positions, forward_batch.seq_lens - 1
        super().__call__(layer, args, kwargs)
        forward_batch.positions = logical


class HostLengths(Capture):
    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        attention_call(args, kwargs)[0].seq_lens_cpu.max()
        super().__call__(layer, args, kwargs)


class CachedWhere(QueryRing):
    def where(self, rows: torch.Tensor, positions: torch.Tensor) -> Where:
        if not hasattr(self, "cache"):
            self.cache: dict[int, Where] = {}
        return self.cache.setdefault(len(rows), super().where(rows, positions))


class ReplacedTable(QueryRing):
    def acquire(self, row: int) -> int | None:
        slot = super().acquire(row)
        self.slot_of_row = self.slot_of_row.clone()
        return slot


class KeptTable(QueryRing):
    def acquire(self, row: int) -> int | None:
        self.kept = [*getattr(self, "kept", []), self.slot_of_row]
        self.slot_of_row = self.slot_of_row.clone()
        return super().acquire(row)


class OwnPositions(QueryRing):
    positions = torch.zeros(0, dtype=torch.int64)

    def where(self, rows: torch.Tensor, positions: torch.Tensor) -> Where:
        if len(self.positions) < len(rows):
            self.positions = torch.zeros_like(positions)
        return super().where(rows, self.positions[: len(rows)])


class RowsFromOne(QueryRing):
    def where(self, rows: torch.Tensor, positions: torch.Tensor) -> Where:
        return super().where((rows - 1) % (len(self.slot_of_row) - 1) + 1, positions)


class BranchOnData(QueryRing):
    def where(self, rows: torch.Tensor, positions: torch.Tensor) -> Where:
        if (self.slot_of_row[rows] > 0).any():
            return super().where(rows, positions)
        return torch.zeros_like(rows), torch.zeros_like(rows)


class CopiesToTheHost(QueryRing):
    def where(self, rows: torch.Tensor, positions: torch.Tensor) -> Where:
        return super().where(rows.cpu(), positions)


class Masked(QueryRing):
    def where(self, rows: torch.Tensor, positions: torch.Tensor) -> Where:
        slots, entries = super().where(rows, positions)
        entries[slots == 0] = 0
        return slots, entries[slots >= 0]


class FromTheHost(QueryRing):
    def where(self, rows: torch.Tensor, positions: torch.Tensor) -> Where:
        return self.slot_of_row[rows], positions % torch.tensor(self.window)


def physical(original: Callable[..., Any], *args: Any) -> Any:
    """In the place of `make_logical`."""
    return original(*args)


def own_positions(*args: Any) -> Any:
    """In the place of `make_logical`: the ring is told each step's positions, in a tensor that the step has made."""
    *_, model_runner = args
    forward_batch = make_logical(*args)
    model_runner.rpc.ring.positions = forward_batch.positions
    return forward_batch
