"""What a backend is, and the memory that one may take."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from sglang_rpc.types import Compression, Observer

#: Bytes of device memory that the kernels may take for one part of a batch. Batches that need more are cut.
SCRATCH_BYTES = 2**27

#: Sums a float32 tensor over tensor-parallel ranks.
Reduce = Callable[[torch.Tensor], torch.Tensor]


class Backend(Protocol):
    """Scores, selects and moves: what `--rpc-scoring` chooses between."""

    name: str  #: as `--rpc-scoring` calls it
    observer: Observer | None  #: is shown what each compression keeps

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream."""
