"""The KV of retracted requests, in host memory, bounded.

What is kept is the row's bytes as they were, in the pool's storage dtype: a compressed request cannot be rebuilt from
its tokens, and an uncompressed one is copied back sooner than computed. The prompt is kept once for all the samples
that share it, in case the tree has dropped it by the time they come back. Recurrent layers have a state per request
instead of KV; it is kept with the rest.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from sglang_rpc.memory.arena import CHUNK_BYTES, Arena, HostBytes
from sglang_rpc.types import KVLayer

#: Bytes of device memory that one buffer's entries may take on their way, so that a long row takes no more than a short
#: one.
STAGING_BYTES = 2**25


@dataclass(frozen=True)
class HostKV:
    """All that belongs to consecutive row positions: of the first buffer of the first layer, of the next, ..."""

    bytes: HostBytes
    tokens: int


@dataclass(eq=False)
class Backup:
    """One request's row but for its newest entry, whose token is computed again when the request comes back."""

    prompt: HostKV
    prompt_key: Hashable
    generated: HostKV
    queries: (
        HostBytes | None
    )  #: its query slot [layers, R (with drafts R + n), heads, head_dim], if it was recording; and the draft's
    state: HostBytes  #: of recurrent layers, layer by layer; nothing without them

    @property
    def tokens(self) -> int:
        """KV entries, prompt included."""
        return self.prompt.tokens + self.generated.tokens


class HostBackup:
    """Backups of the requests that wait to come back. `used` never exceeds `limit`, in bytes of whole chunks."""

    def __init__(
        self,
        layers: Sequence[KVLayer],
        limit: int,
        *,
        states: Sequence[torch.Tensor] = (),
        chunk_bytes: int = CHUNK_BYTES,
    ):
        """Allocate `limit` bytes of host memory, or what the host has of it, once and for all.

        Args:
            states: of recurrent layers, [layers, slots, ...] each.
        """
        self._states = [layer for buffer in states for layer in buffer.unbind(0)]
        self._buffers = [buffer for layer in layers for buffer in layer.buffers]
        pinned = any(buffer.is_cuda for buffer in self._buffers)
        self._arena = Arena(limit, pinned=pinned, chunk_bytes=chunk_bytes)
        self.entry_bytes = sum(buffer[0].nbytes for buffer in self._buffers)  #: what room for one KV entry is taken as
        self._query_bytes = 0
        self._prompts: dict[Hashable, tuple[HostKV, int]] = {}  # how many backups share each

    @property
    def limit(self) -> int:
        """Bytes of host memory that are held for backups: whole chunks, of all that was allowed."""
        return self._arena.capacity

    @property
    def used(self) -> int:
        """Bytes of the chunks that backups lie in."""
        return self._arena.used

    @property
    def has_states(self) -> bool:
        """Whether a backup has a recurrent state too, and so belongs to one length of its request's text."""
        return bool(self._states)

    def lower(self, limit: int) -> None:
        """Keep to `limit` bytes from now on, if that is less. Nothing has been saved yet."""
        self._arena.shrink(min(limit, self.limit))

    def charge(self, entry_bytes: int, query_bytes: int) -> None:
        """Take room for entries and query slots of these sizes from now on, at least: those of the rank that has most.

        So ranks whose layers differ in number, but whose limits are equal, have room for the same backups.
        """
        self.entry_bytes = max(self.entry_bytes, entry_bytes)
        self._query_bytes = query_bytes

    def save(
        self,
        slots: torch.Tensor,
        prompt_length: int,
        prompt_key: Hashable,
        queries: Sequence[torch.Tensor] | None,
        state_slot: torch.Tensor | None = None,
    ) -> Backup | None:
        """Copy `slots` (int64, the row's, prompt first) to the host, on the current stream; None if there is no room.

        Args:
            prompt_key: equal for rows whose prompt KV is equal.
            queries: the request's query slot, copied too: the model's and, if there is one, the draft's.
            state_slot: int64 [1], where there are states: the slot of its own.
        """
        known = self._prompts.get(prompt_key)
        generated = slots.numel() - prompt_length
        taken = self._arena.take(
            0 if known is not None else prompt_length * self.entry_bytes,
            generated * self.entry_bytes,
            0 if queries is None else max(sum(each.nbytes for each in queries), self._query_bytes),
            sum(layer[0].nbytes for layer in self._states),
        )
        if taken is None:
            return None
        prompt, sharers = known or (self._copy(slots[:prompt_length], taken[0]), 0)
        self._prompts[prompt_key] = prompt, sharers + 1
        if queries is not None:
            first = 0
            for each in queries:
                taken[2].write(first, each)
                first += each.nbytes
        if state_slot is not None:
            self._copy_state(state_slot, taken[3])
        generated_kv = self._copy(slots[prompt_length:], taken[1])
        return Backup(prompt, prompt_key, generated_kv, None if queries is None else taken[2], taken[3])

    def load(self, backup: Backup, first: int, slots: torch.Tensor) -> None:
        """Copy the row positions from `first` on into `slots` of the pool, on the current stream."""
        into_prompt = max(0, backup.prompt.tokens - first)
        skipped = max(0, first - backup.prompt.tokens)
        self._paste(backup.prompt, first, slots[:into_prompt])
        self._paste(backup.generated, skipped, slots[into_prompt:])

    def load_queries(self, backup: Backup, slot: Sequence[torch.Tensor]) -> None:
        """Copy the queries of `backup`, which has some, into a query slot of the ring, on the current stream."""
        assert backup.queries is not None, "it was not recording"
        first = 0
        for each in slot:
            staged = torch.empty(each.shape, dtype=each.dtype, device=each.device)
            backup.queries.read(first, staged)
            each.copy_(staged)
            first += staged.nbytes

    def load_state(self, backup: Backup, slot: torch.Tensor) -> None:
        """Copy the recurrent state of `backup` into `slot`, int64 [1], on the current stream."""
        first = 0
        for layer in self._states:
            state = torch.empty((1, *layer.shape[1:]), dtype=layer.dtype, device=layer.device)
            backup.state.read(first, state)
            layer[slot] = state
            first += state.nbytes

    def drop(self, backup: Backup) -> None:
        """Forget it; a prompt goes with its last sharer. Copies in flight are done before their chunks are written."""
        prompt, sharers = self._prompts[backup.prompt_key]
        if sharers > 1:
            self._prompts[backup.prompt_key] = prompt, sharers - 1
        else:
            del self._prompts[backup.prompt_key]
            self._arena.give_back(prompt.bytes)
        self._arena.give_back(backup.generated.bytes)
        if backup.queries is not None:
            self._arena.give_back(backup.queries)
        self._arena.give_back(backup.state)

    def _copy_state(self, slot: torch.Tensor, room: HostBytes) -> None:
        first = 0
        for layer in self._states:
            state = layer[slot]
            room.write(first, state)
            first += state.nbytes

    def _copy(self, slots: torch.Tensor, room: HostBytes) -> HostKV:
        first = 0
        for buffer in self._buffers:
            for part in slots.split(_staged_at_once(buffer)):
                entries = buffer[part]
                room.write(first, entries)
                first += entries.nbytes
        return HostKV(room, slots.numel())

    def _paste(self, kv: HostKV, skipped: int, slots: torch.Tensor) -> None:
        if slots.numel() == 0:
            return
        buffer_begins = 0
        for buffer in self._buffers:
            first = buffer_begins + skipped * buffer[0].nbytes
            for part in slots.split(_staged_at_once(buffer)):
                entries = torch.empty((part.numel(), *buffer.shape[1:]), dtype=buffer.dtype, device=buffer.device)
                kv.bytes.read(first, entries)
                buffer[part] = entries
                first += entries.nbytes
            buffer_begins += kv.tokens * buffer[0].nbytes


def _staged_at_once(buffer: torch.Tensor) -> int:
    return max(1, STAGING_BYTES // buffer[0].nbytes)
