"""Host memory in chunks of one size, allocated once, pinned where there is a GPU.

Everything is allocated at the start, for three reasons:

* A retraction comes when memory has run out, in the middle of decoding. To pin memory then would be slow (the driver
  locks every page) and would keep kernels of different streams from running side by side.
* Ranks that share a model must refuse the same backups, or their rows would differ. Memory that was there at the start
  cannot be missing on one of them later.
* What is held is known at the start. PyTorch's allocator of pinned memory rounds each request up to a power of two and
  keeps what is freed, so it is asked once, and for powers of two only.

The price is time at the start, which the log names, and memory that is taken from the host whether or not a request is
ever retracted. Unpinned memory costs nothing until it is written.

**Why chunks can be used again at once.** The host never reads or writes their bytes; only copies between host and
device do, and every one of them is issued on the scheduler's stream, in the order of the calls. A copy into a chunk
that was given back therefore starts after the last copy out of it. Without a GPU a copy is done when it returns.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)

#: Bytes of a chunk. A copy of this size runs at almost the full speed of PCIe; on average half a chunk is lost per
#: backup, and half a chunk per prompt.
CHUNK_BYTES = 2**21
#: Most bytes that are allocated at once, so that a host that has less memory than asked for gives what it has.
SEGMENT_BYTES = 2**26


@dataclass(frozen=True)
class HostBytes:
    """A string of bytes, scattered over chunks: uint8, of one size; the last may be filled in part."""

    chunks: tuple[torch.Tensor, ...]

    def write(self, first: int, tensor: torch.Tensor) -> None:
        """Copy `tensor` to the bytes from `first` on, on the current stream. The host does not wait."""
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        for piece, part in self._pieces(first, flat):
            piece.copy_(part, non_blocking=True)

    def read(self, first: int, tensor: torch.Tensor) -> None:
        """Fill `tensor`, contiguous, with the bytes from `first` on, on the current stream. The host does not wait."""
        for piece, part in self._pieces(first, tensor.view(-1).view(torch.uint8)):
            part.copy_(piece, non_blocking=True)

    def _pieces(self, first: int, flat: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Parts of chunks from byte `first` on, each with the part of `flat`, uint8, that belongs there."""
        done, size = 0, flat.numel()
        while done < size:
            index, at = divmod(first + done, self.chunks[0].numel())
            piece = self.chunks[index][at : at + size - done]
            yield piece, flat[done : done + piece.numel()]
            done += piece.numel()


class Arena:
    """Chunks that are free, and how many there are. All sizes are in bytes."""

    def __init__(self, size: int, *, pinned: bool, chunk_bytes: int = CHUNK_BYTES):
        """Allocate as many whole chunks as `size` holds, or as the host has. `chunk_bytes` is a power of two."""
        self.chunk_bytes = chunk_bytes
        segments = _allocate(size // chunk_bytes, chunk_bytes, pinned)
        self._free = [chunk for segment in segments for chunk in segment.split(chunk_bytes)]
        self._chunks = len(self._free)

    @property
    def capacity(self) -> int:
        """What all chunks hold."""
        return self._chunks * self.chunk_bytes

    @property
    def used(self) -> int:
        """What the chunks hold that are taken."""
        return (self._chunks - len(self._free)) * self.chunk_bytes

    def take(self, *sizes: int) -> list[HostBytes] | None:
        """Room for each of `sizes`; None, with nothing taken, if there is not enough for all."""
        counts = [-(-size // self.chunk_bytes) for size in sizes]
        if sum(counts) > len(self._free):
            return None
        return [HostBytes(tuple(self._free.pop() for _ in range(count))) for count in counts]

    def give_back(self, taken: HostBytes) -> None:
        """The chunks may be taken again at once (see above)."""
        self._free.extend(taken.chunks)

    def shrink(self, capacity: int) -> None:
        """Leave chunks out of use, so that no more than `capacity` is in use from now on. None has been taken yet."""
        assert self.used == 0, f"{self.used} bytes are taken"
        del self._free[capacity // self.chunk_bytes :]
        self._chunks = len(self._free)


def _allocate(chunks: int, chunk_bytes: int, pinned: bool) -> list[torch.Tensor]:
    """Segments of a power of two of chunks each, `chunks` in all, or as many as the host gives."""
    assert chunk_bytes.bit_count() == 1, f"{chunk_bytes} bytes would be rounded up"
    segments: list[torch.Tensor] = []
    largest = max(1, SEGMENT_BYTES // chunk_bytes)
    while chunks > 0:
        count = min(largest, 1 << (chunks.bit_length() - 1))
        try:
            segments.append(torch.empty(count * chunk_bytes, dtype=torch.uint8, pin_memory=pinned))
        except RuntimeError as error:
            logger.warning("RPC: the host gave no more memory for backups: %s", str(error).partition("\n")[0])
            break
        chunks -= count
    return segments
