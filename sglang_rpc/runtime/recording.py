"""Whose newest queries are recorded: query slots, taken R steps before a compression and given back after it."""

from dataclasses import dataclass

from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.types import NEVER


@dataclass
class Recording:
    """One request's query slot. Only a Recorder changes it."""

    slot: int | None = None
    since: int = 0  #: logical length when the slot was taken: queries from this position on are held
    ahead: bool = False  #: taken ahead of time, in case memory runs out; not for a due date
    turn: int = NEVER  #: its turn among those that wait for a slot, the lowest first; NEVER: it does not wait

    def complete_at(self, window: int) -> int:
        """The logical length at which a whole window of queries is held; needs a slot."""
        return self.since + window


class Recorder:
    """Hands the ring's query slots to requests: where there are too few, to those that have waited longest.

    Who waits must ask in every step, in the order of `Recording.turn`, until it gets a slot or is released.
    """

    def __init__(self, ring: QueryRing):
        self.ring = ring
        self.waiting = 0  #: recordings that have asked for a slot and still wait for one
        #: Nobody takes a slot until this is False again: a request that comes back with its queries needs the next.
        self.keeps_free = False
        self._turns = 0  #: turns given out so far

    def record(self, recording: Recording, row: int, generated: int) -> bool:
        """Record for the due date, from `generated` logical entries on; False, and a turn, if no query slot is free.

        A slot that was taken ahead of time is the due date's from now on.
        """
        if recording.slot is None and not self._acquire(recording, row, generated):
            if recording.turn == NEVER:
                recording.turn = self._turns
                self._turns += 1
                self.waiting += 1
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
        slot = self.ring.acquire(row)  # before those that wait: it brings its queries
        assert slot is not None, "no query slot is free"
        recording.slot, recording.since = slot, since
        return slot

    def park(self, recording: Recording) -> int:
        """Give the slot back, with its queries, which stay until another needs it; returns the ring's name of them."""
        assert recording.slot is not None, "nothing is recorded"
        ticket = self.ring.park(recording.slot)
        recording.slot, recording.ahead = None, False
        return ticket

    def release(self, recording: Recording) -> None:
        """Give the slot back, if there is one; wait for none."""
        self._wait_no_more(recording)
        if recording.slot is not None:
            self.ring.release(recording.slot)
            recording.slot = None
            recording.ahead = False

    def _acquire(self, recording: Recording, row: int, generated: int) -> bool:
        overtakes = recording.turn == NEVER and self.waiting >= self.ring.free
        slot = None if overtakes or self.keeps_free else self.ring.acquire(row)
        if slot is None:
            return False
        recording.slot, recording.since = slot, generated
        self._wait_no_more(recording)
        return True

    def _wait_no_more(self, recording: Recording) -> None:
        if recording.turn != NEVER:
            recording.turn = NEVER
            self.waiting -= 1
