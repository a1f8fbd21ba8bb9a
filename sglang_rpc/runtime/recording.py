"""Whose newest queries are recorded: query slots, taken R steps before a compression and given back after it."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_rpc.memory.query_ring import QueryRing


@dataclass
class Recording:
    """One request's query slot. Only a Recorder changes it."""

    slot: int | None = None
    since: int = 0  #: logical length when the slot was taken: queries from this position on are held
    ahead: bool = False  #: taken ahead of time, in case memory runs out; not for a due date

    def complete_at(self, window: int) -> int:
        """The logical length at which a whole window of queries is held; needs a slot."""
        return self.since + window


class Recorder:
    """Hands the ring's query slots to requests."""

    def __init__(self, ring: QueryRing):
        self.ring = ring

    def record(self, recording: Recording, row: int, generated: int) -> bool:
        """Record for the due date, from `generated` logical entries on; False if no query slot is free.

        A slot that was taken ahead of time is the due date's from now on.
        """
        if recording.slot is None and not self._acquire(recording, row, generated):
            return False
        self.claim(recording)
        return True

    def claim(self, recording: Recording) -> None:
        """The due date has come: it uses the slot, if there is one, whatever it was taken for."""
        recording.ahead = False

    def record_ahead(self, recording: Recording, row: int, generated: int) -> bool:
        """Record before the due date asks for it; False if no query slot is free."""
        if recording.slot is None:
            if not self._acquire(recording, row, generated):
                return False
            recording.ahead = True
        return True

    def resume(self, recording: Recording, row: int, since: int) -> int:
        """Record for `row`, whose queries from `since` on the caller copies into the slot returned.

        The caller has seen that a slot is free.
        """
        acquired = self._acquire(recording, row, since)
        assert acquired, "no query slot is free"
        assert recording.slot is not None
        return recording.slot

    def release(self, recording: Recording) -> None:
        """Give the slot back, if there is one."""
        if recording.slot is not None:
            self.ring.release(recording.slot)
            recording.slot = None
            recording.ahead = False

    def _acquire(self, recording: Recording, row: int, generated: int) -> bool:
        slot = self.ring.acquire(row)
        if slot is None:
            return False
        recording.slot, recording.since = slot, generated
        return True
