"""The KV of retracted requests, in host memory, bounded.

What is kept is the row's bytes as they were, in the pool's storage dtype: a compressed request cannot be rebuilt from
its tokens, and an uncompressed one is copied back sooner than computed. The prompt is kept once for all the samples
that share it, in case the tree has dropped it by the time they come back.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from sglang_rpc.types import KVLayer


@dataclass(frozen=True)
class HostKV:
    """K and V of consecutive row positions, all layers: [tokens, kv_heads, head_dim] tensors on the host."""

    buffers: tuple[torch.Tensor, ...]  #: those of the first layer, of the second, ...
    tokens: int

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        return sum(buffer.nbytes for buffer in self.buffers)


@dataclass(eq=False)
class Backup:
    """One request's row but for its newest entry, whose token is computed again when the request comes back."""

    prompt: HostKV
    prompt_key: Hashable
    generated: HostKV
    queries: torch.Tensor | None  #: its query slot [layers, R, heads, head_dim], if it was recording

    @property
    def tokens(self) -> int:
        """KV entries, prompt included."""
        return self.prompt.tokens + self.generated.tokens


class HostBackup:
    """Backups of the requests that wait to come back; `used` never exceeds `limit`. Both in bytes."""

    def __init__(self, layers: Sequence[KVLayer], limit: int):
        self.limit = limit
        self.used = 0
        self._layers = layers
        self._entry_bytes = sum(buffer[0].nbytes for buffer in self._buffers())
        self._prompts: dict[Hashable, tuple[HostKV, int]] = {}  # how many backups share each

    def save(
        self, slots: torch.Tensor, prompt_length: int, prompt_key: Hashable, queries: torch.Tensor | None
    ) -> Backup | None:
        """Copy `slots` (int64, the row's, prompt first) to the host, on the current stream; None if there is no room.

        Args:
            prompt_key: equal for rows whose prompt KV is equal.
            queries: the request's query slot, copied too.
        """
        known = self._prompts.get(prompt_key)
        entries = slots.numel() - (prompt_length if known is not None else 0)
        needed = entries * self._entry_bytes + (0 if queries is None else queries.nbytes)
        if self.used + needed > self.limit:
            return None
        prompt, sharers = known or (self._copy(slots[:prompt_length]), 0)
        self._prompts[prompt_key] = prompt, sharers + 1
        self.used += needed
        return Backup(
            prompt, prompt_key, self._copy(slots[prompt_length:]), None if queries is None else _to_host(queries)
        )

    def load(self, backup: Backup, first: int, slots: torch.Tensor) -> None:
        """Copy the row positions from `first` on into `slots` of the pool, on the current stream."""
        into_prompt = max(0, backup.prompt.tokens - first)
        skipped = max(0, first - backup.prompt.tokens)
        self._paste(backup.prompt, first, slots[:into_prompt])
        self._paste(backup.generated, skipped, slots[into_prompt:])

    def drop(self, backup: Backup) -> None:
        """Forget it; a prompt goes with its last sharer. Copies in flight keep their memory alive."""
        prompt, sharers = self._prompts[backup.prompt_key]
        if sharers > 1:
            self._prompts[backup.prompt_key] = prompt, sharers - 1
        else:
            del self._prompts[backup.prompt_key]
            self.used -= prompt.nbytes
        self.used -= backup.generated.nbytes + (0 if backup.queries is None else backup.queries.nbytes)

    def _buffers(self) -> list[torch.Tensor]:
        return [buffer for layer in self._layers for buffer in layer.buffers]

    def _copy(self, slots: torch.Tensor) -> HostKV:
        return HostKV(tuple(_to_host(buffer[slots]) for buffer in self._buffers()), slots.numel())

    def _paste(self, kv: HostKV, skipped: int, slots: torch.Tensor) -> None:
        if slots.numel() == 0:
            return
        for buffer, saved in zip(self._buffers(), kv.buffers, strict=True):
            buffer[slots] = saved[skipped : skipped + slots.numel()].to(buffer.device, non_blocking=True)


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory; pinned, and without a wait, if the tensor is on a GPU."""
    if not tensor.is_cuda:
        return tensor.clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
