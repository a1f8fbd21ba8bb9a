"""What one request has been through: its options, its region, its due dates, and the receipt it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglang_rpc.config import RequestOptions
from sglang_rpc.policy import budget
from sglang_rpc.policy.lightthinker import Thoughts
from sglang_rpc.runtime.admission import Plan
from sglang_rpc.runtime.segment import SegmentTracker


@dataclass
class Totals:
    """Cumulative over the request's life, retractions included."""

    compressions: int = 0
    evicted: int = 0  #: KV entries dropped, counted once a layer-wide set (not per layer)
    slots_freed: int = 0  #: slots given back to the pool, in whole pages: the unfilled rest of a page counts
    late: int = (
        0  #: compressions after their due date: retracted, no query slot, or the pool was not under memory pressure
    )
    early: int = 0  #: compressions before their due date, to spare a retraction
    retractions: int = 0
    restored: int = 0  #: retractions after which the request came back with the KV it had


@dataclass(frozen=True)
class Live:
    """What a retracted request must have again with its KV."""

    events: int
    evicted: int
    slot_since: int
    check_at: int


@dataclass
class RequestState:
    """RPC's state of one request. Positions count KV entries behind the prompt unless said otherwise.

    The region that may be compressed is `[start, generated)`; `start` is 0, or the first thought the model emitted.
    """

    options: RequestOptions
    refused: str | None = None  #: why this request is never compressed, if it is not
    segment: SegmentTracker | None = None  #: scope `think`, once the prompt has been read; scope `all` has none
    thoughts: Thoughts | None = None  #: policy lightthinker: these are evicted, and there are no due dates
    totals: Totals = field(default_factory=Totals)
    deferred: bool = (
        False  #: whether a look came while the pool was not under memory pressure, and due dates were not kept
    )

    # Live: what the request's KV row is now. Reset by a retraction, after which the row is rebuilt uncompressed.
    events: int = 0  #: n: compressions whose budget has been applied; or thoughts that have been evicted
    evicted: int = 0  #: entries missing from the row: logical minus physical length
    slot: int | None = None  #: query slot held
    slot_since: int = 0  #: logical length when the slot was taken: queries from this position on are held
    pre_recording: bool = False  #: the slot was taken ahead of time, in case memory runs out
    check_at: int = 0  #: physical length of the row, prompt included, at which to look again

    fitted_for: tuple[int | None, bool] | None = None  #: (start, active) for which its limit was found, once known

    compacted_in: int = -1  #: the scheduling step in which its row was last compacted
    trace: Any = None  #: once compressed, if that is to be written down: its file (runtime.trace.RequestTrace)

    # While it waits to come back.
    backup: Any = None  #: its KV on the host (memory.host_backup.Backup), if it is kept
    to_restore: Live | None = None  #: with a backup: the live state that belongs to it

    @property
    def start(self) -> int | None:
        """First entry of the compressible region; None while the model has not begun to think."""
        if self.options.scope == "all":
            return 0
        return None if self.segment is None else self.segment.start

    @property
    def active(self) -> bool:
        """Whether a compression may still come."""
        return self.options.enabled and self.refused is None and not (self.segment is not None and self.segment.closed)

    def live(self) -> Live:
        return Live(self.events, self.evicted, self.slot_since, self.check_at)

    def restore(self, live: Live) -> None:
        """The row is as it was when `live` was taken; a query slot is the caller's to give."""
        self.events, self.evicted = live.events, live.evicted
        self.slot_since, self.check_at = live.slot_since, live.check_at

    def reset(self) -> None:
        """The row is gone, and will be rebuilt from its tokens: nothing evicted, no query held."""
        assert self.slot is None, "the query slot is given back with the row"
        self.events = 0
        self.evicted = 0
        self.check_at = 0

    def due(self) -> int:
        """Logical length at which the next compression is due; needs a `start`."""
        assert self.start is not None
        return self.start + budget.next_due(self.events, self.options.interval, self.options.window)

    def early_gain(self, generated: int, ratio: float) -> int:
        """Entries that a compression at `ratio` would evict now, before its due date; not above 0 if none."""
        if not self.active or self.start is None or self.thoughts is not None:
            return 0
        options = self.options
        region = generated - self.start
        keep = budget.early_kept(region, self.events, options.interval, options.window, ratio)
        return region - self.evicted - options.window - max(1, keep)

    def plan(self, generated: int, tokens: int, ends: bool, prompt: int) -> Plan:
        """What the request will hold while it generates `tokens` more behind `generated` logical entries and a prompt
        of `prompt`.

        How long it thinks is not known: of scope `think` it is taken to think until it ends, and, before its first
        thought, to begin at once. Nobody knows either when a thought has its gists: none is taken to be evicted.
        """
        return self._plan(generated, tokens, ends, prompt, recording=self.slot is not None)

    def _plan(self, generated: int, tokens: int, ends: bool, prompt: int, recording: bool) -> Plan:
        held = generated - self.evicted
        if not self.active or self.thoughts is not None:
            return Plan(held, generated, tokens, ends, prompt=prompt)
        options = self.options
        start = generated if self.start is None else self.start
        due = start + budget.next_due(self.events, options.interval, options.window)
        recorded_from = self.slot_since if recording else generated
        return Plan(
            held,
            generated,
            tokens,
            ends,
            compresses_at=max(due, recorded_from + options.window),
            start=start,
            interval=options.interval,
            window=options.window,
            budget_step=options.budget_step,
            prompt=prompt,
        )

    def plan_restored(self, generated: int, tokens: int, ends: bool, prompt: int) -> Plan:
        """`plan` of a request that waits to come back, as it will be with its backup."""
        assert self.to_restore is not None
        now, recording = self.live(), self.backup is not None and self.backup.queries is not None
        self.restore(self.to_restore)
        try:
            return self._plan(generated, tokens, ends, prompt, recording)
        finally:
            self.restore(now)

    def receipt(self, generated: int) -> dict[str, Any]:
        """What the response says of it. `generated` tokens make the logical length; `held` is the physical one."""
        result: dict[str, Any] = {
            "compressions": self.totals.compressions,
            "generated": generated,
            "held": generated - self.evicted,
            "evicted": self.totals.evicted,
            "slots_freed": self.totals.slots_freed,
            "late": self.totals.late,
            "early": self.totals.early,
            "retractions": self.totals.retractions,
            "restored": self.totals.restored,
            "interval": self.options.interval,
            "window": self.options.window,
            "ratio": self.options.ratio,
            "scope": self.options.scope,
        }
        if self.totals.compressions == 0:
            result["reason"] = self._why_not(generated)
        return result

    def _why_not(self, generated: int) -> str:
        if self.refused is not None:
            return self.refused
        if not self.options.enabled:
            return "switched off by the request"
        if self.start is None:
            return "no think segment opened"
        if self.thoughts is not None:
            return "no thought was followed by the gist tokens"
        first = self.start + budget.next_due(0, self.options.interval, self.options.window)
        if self.segment is not None and self.segment.closed:
            return f"the think segment ended before {first} generated tokens, where the first compression is due"
        if generated > first:
            waited_for = "the pool was not under memory pressure" if self.deferred else "no query slot was free"
            return f"{waited_for} when a compression was due"
        return f"finished before {first} generated tokens, where the first compression is due"
