"""Memory as a CUDA graph knows it: by its address.

What was allocated in a capture belongs to the graphs' pool, stays, and holds anything at all when a replay begins. All
else is somebody else's: a replay reads and writes what lies there then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

#: A byte that makes an index too large and a number absurd, in each type.
GARBAGE = 0x7F


class Freed(Exception):
    """A replay would read or write memory that its owner has given back."""


@dataclass(eq=False)
class Block:
    """One allocation."""

    size: int  #: bytes
    weak: StorageWeakRef
    owned: torch.UntypedStorage | None  #: the pool's; None for memory of somebody else
    before: torch.Tensor | None = None  #: somebody else's content when the capture began

    @classmethod
    def of(cls, tensor: torch.Tensor, *, allocated_here: bool) -> Block:
        """The allocation that `tensor` lies in."""
        storage = tensor.untyped_storage()
        block = cls(storage.nbytes(), StorageWeakRef(storage), storage if allocated_here else None)
        if not allocated_here:
            block.before = block._bytes().clone()
        return block

    def storage(self) -> torch.UntypedStorage:
        """The allocation. Raises Freed if its owner has given it back."""
        if self.owned is not None:
            return self.owned
        if self.weak.expired():
            raise Freed(f"a replay would use {self.size} bytes that were freed after the capture")
        return torch.UntypedStorage._new_with_weak_ptr(self.weak.cdata)

    def leave_capture(self) -> None:
        """Undo what the capture did: a real one runs no kernel, and what it allocates is never written."""
        if self.owned is not None:
            self.spoil()
        elif not self.weak.expired():
            self._bytes().copy_(self.before)
        self.before = None

    def spoil(self) -> None:
        """Overwrite the pool's own memory, as other graphs and allocations do between two replays."""
        if self.owned is not None:
            self._bytes().fill_(GARBAGE)

    def _bytes(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8).set_(self.storage())


@dataclass(frozen=True)
class Place:
    """Where a captured operator's tensor lies. The tensor itself is Python's, and may be gone at a replay."""

    block: Block
    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor, block: Block) -> Place:
        """Where `tensor` lies in `block`."""
        return cls(block, tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride())

    def tensor(self) -> torch.Tensor:
        """What lies there now. Raises Freed."""
        return torch.empty(0, dtype=self.dtype).set_(self.block.storage(), self.offset, self.size, self.stride)


def resolved(value: Any) -> Any:
    """`value` with a tensor for each Place."""
    return value.tensor() if isinstance(value, Place) else value
