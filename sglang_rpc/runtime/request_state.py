"""RPC's state of one request, in parts with one writer each."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from sglang_rpc.config import RequestOptions
from sglang_rpc.memory.host_backup import Backup
from sglang_rpc.policy.budget import Budget
from sglang_rpc.policy.lightthinker import Thoughts
from sglang_rpc.runtime.admission import Plan
from sglang_rpc.runtime.aliases import Alias
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.continued import Continued
from sglang_rpc.runtime.receipt import make_receipt
from sglang_rpc.runtime.recording import Recording
from sglang_rpc.runtime.segment import SegmentTracker
from sglang_rpc.runtime.totals import Totals
from sglang_rpc.types import Compression


@dataclass(frozen=True)
class Saved:
    """What a retracted request must have again with its KV."""

    clock: Clock  #: a copy
    recorded_since: int  #: since when the queries in the backup were recorded
    backup: Backup


@dataclass(frozen=True)
class Kept:
    """What a decode server keeps of a retracted request, beside the KV that SGLang backs up and the clock, which goes
    on."""

    recorded_since: int = 0  #: since when the queries were recorded
    queries: torch.Tensor | None = None  #: on the host; None if no window was being recorded


@dataclass(frozen=True)
class Taken:
    """What a request's prompt takes over of an earlier request, and what the request was before it did."""

    alias: Alias
    text: array[int]  #: its prompt's real ids
    key: array[int]  #: what SGLang knows as its prompt: one id per KV entry
    logprob_start_len: int  #: as SGLang set it for the text


class TraceFile(Protocol):
    """A request's `--rpc-trace` file, as the scheduler's thread knows it (trace.tracer.RequestTrace)."""

    def compressed(self, c: Compression, kept: Any, output_ids: Sequence[int]) -> None:
        """Write down a compression and what it kept."""

    def finish(self, output_ids: Sequence[int], reason: Any, receipt: dict[str, Any]) -> None:
        """Write the last line."""


@dataclass
class HookState:
    """What only the hooks need. Each field is written by one of them."""

    fitted_for: tuple[int | None, bool] | None = None  #: (start, active) that its length limit was found for
    compacted_in: int = -1  #: the scheduling step in which its row was last compacted
    saved: Saved | None = None  #: while a retracted request waits to come back with its KV
    kept: Kept | None = None  #: the same on a decode server, where SGLang has the KV
    ended: str | None = None  #: why it ended when it was retracted, if it did
    trace: TraceFile | None = None  #: once compressed, if that is written down


@dataclass
class RequestState:
    """RPC's state of one request. Positions count KV entries after the prompt unless said otherwise.

    The region that may be compressed is `[start, generated)`; `start` is 0, or the first thought the model emitted.
    """

    options: RequestOptions
    refused: str | None = None  #: why this request is never compressed, if it is not
    reach: int = 0  #: entries before its own that a token of the model's sliding-window layers sees
    page: int = 1  #: compressions evict multiples of so many entries
    queries_before: int = 0  #: to record before its window, if there is time: 1 for a draft model
    stride: int = 1  #: tokens that a step may add, more than one where the server speculates
    segment: SegmentTracker | None = None  #: scope `think`; scope `all` has none
    thoughts: Thoughts | None = None  #: policy lightthinker: these are evicted, and there are no due dates
    clock: Clock = field(default_factory=Clock)  #: dates; reset by a retraction
    recording: Recording = field(default_factory=Recording)  #: its query slot; given back with the row
    totals: Totals = field(default_factory=Totals)  #: over its life
    hooks: HookState = field(default_factory=HookState)
    taken: Taken | None = None  #: with reuse, what it takes over
    not_reused: str = ""  #: why it takes nothing over
    continued: Continued | None = None  #: whose region it goes on with, if it does: all lengths count that one's too

    @property
    def start(self) -> int | None:
        """First entry of the compressible region; None while the model has not begun to think."""
        if self.continued is not None:
            return self.continued.thought.start
        if self.options.scope == "all":
            return 0
        return None if self.segment is None else self.segment.start

    @property
    def active(self) -> bool:
        """Whether a compression may still come."""
        return self.options.enabled and self.refused is None and not (self.segment is not None and self.segment.closed)

    @property
    def evicted(self) -> int:
        """Entries missing from its row."""
        return self.clock.evicted

    @property
    def offset(self) -> int:
        """Entries that its row holds less than there are tokens before its region."""
        if self.continued is not None:
            return self.continued.offset
        return 0 if self.taken is None else self.taken.alias.offset

    @property
    def inherited(self) -> int:
        """Tokens of its region that earlier requests generated."""
        return 0 if self.continued is None else self.continued.inherited

    @property
    def compacted(self) -> bool:
        """Whether its own row has been compressed, and so lies in the order of an own copy."""
        return self.evicted > 0 and (self.continued is None or self.continued.copied)

    @property
    def shares_region(self) -> bool:
        """Whether its region lies in the tree, shared, so that a compression needs a copy of it first."""
        return self.continued is not None and not self.continued.copied

    def front(self, prompt: int) -> int:
        """Entries before its region; `prompt` is the length of the prompt as SGLang knows it."""
        return prompt if self.continued is None else self.continued.front

    def fixed(self, prompt: int) -> int:
        """Entries at the beginning of its row that no compression moves, as the row is now."""
        return prompt if self.shares_region else self.front(prompt)

    @property
    def budget(self) -> Budget:
        """What it may hold when."""
        return Budget.of(self.options, self.reach, self.page)

    def read(self, output_ids: Sequence[int], generated: int) -> None:
        """Read `output_ids[:generated]` for think markers and gists; tokens read before are not read again."""
        if not self.active:
            return
        if self.segment is not None:
            self.segment.advance(output_ids, generated - self.inherited)
        if self.thoughts is not None and self.start is not None:
            self.thoughts.advance(output_ids, generated, self.start)

    def save(self, backup: Backup) -> Saved:
        """What must come back with `backup`, taken of the row as it is now."""
        return Saved(replace(self.clock), self.recording.since, backup)

    def restore(self, saved: Saved) -> None:
        """The row is as it was when `saved` was taken; a query slot is the caller's to give."""
        self.clock = replace(saved.clock)

    def reset(self) -> None:
        """The row is gone, and will be rebuilt from its tokens: nothing evicted, no query held."""
        assert self.recording.slot is None, "the query slot is given back with the row"
        self.clock.reset()
        if self.continued is not None:
            self.clock = self.continued.clock()

    def go_on(self, continued: Continued) -> None:
        """Begin with an earlier request's region, before the request has a row."""
        self.continued, self.clock = continued, continued.clock()
        self.hooks.fitted_for = None

    def stop_going_on(self) -> None:
        """What was taken over is prompt from now on, and the region begins with the request's own tokens."""
        assert self.recording.slot is None, "its queries are counted from the region's beginning"
        self.continued, self.clock = None, Clock()
        self.hooks.fitted_for = None
        self.totals.go_on(0)

    def due(self, events: int) -> int:
        """Logical length at which the compression after the `events`-th is due; needs a `start`."""
        assert self.start is not None
        return self.start + self.budget.next_due(events)

    def plan(self, generated: int, tokens: int, ends: bool, prompt: int) -> Plan:
        """What the request will hold while it generates `tokens` more after `generated` logical entries and a prompt
        of `prompt`, as SGLang knows it.

        How long it thinks is not known: of scope `think` it is taken to think until it ends, and, before its first
        thought, to begin at once. Nobody knows either when a thought has its gists: none is taken to be evicted.
        """
        since = None if self.recording.slot is None else self.recording.since
        if self.hooks.kept is not None and self.hooks.kept.queries is not None:
            since = self.hooks.kept.recorded_since
        return self._plan(self.clock, since, generated, tokens, ends, prompt)

    def plan_saved(self, saved: Saved, generated: int, tokens: int, ends: bool, prompt: int) -> Plan:
        """`plan` of a request that waits to come back, as it will be with `saved`."""
        since = None if saved.backup.queries is None else saved.recorded_since
        return self._plan(saved.clock, since, generated, tokens, ends, prompt)

    def _plan(
        self, clock: Clock, recorded_since: int | None, generated: int, tokens: int, ends: bool, prompt: int
    ) -> Plan:
        held, shown, prompt = generated - clock.evicted, prompt, self.front(prompt)
        if not self.active or self.thoughts is not None:
            return Plan(held, generated, tokens, ends, prompt=prompt)
        budget = self.budget
        start = generated if self.start is None else self.start
        due = start + budget.next_due(clock.events)
        recorded = generated if recorded_since is None else recorded_since
        compresses_at = max(due, recorded + budget.window)
        copies = self.shares_region and compresses_at < generated + tokens
        return Plan(
            held,
            generated,
            tokens,
            ends,
            compresses_at=compresses_at,
            start=start,
            interval=budget.interval,
            window=budget.window,
            budget_step=budget.step,
            min_kept=budget.least,
            prompt=prompt,
            holds_slot=recorded_since is not None,
            rest=budget.page - 1,
            shared=shown - self.continued.first if copies and self.continued is not None else 0,
        )

    def receipt(self, generated: int) -> dict[str, Any]:
        """What the response says of it, which has generated so many tokens itself."""
        region = self.inherited + generated
        held = region - self.evicted
        why_not, speculates = self._why_not(region), self.stride > 1
        return make_receipt(self.options, self.totals, generated, held, why_not, self.not_reused, speculates)

    def _why_not(self, generated: int) -> str:
        if self.refused is not None:
            return self.refused
        if not self.options.enabled:
            return "switched off by the request"
        if self.start is None:
            return "no think segment opened"
        if self.thoughts is not None:
            return "no thought was followed by the gist tokens"
        first = self.due(0 if self.continued is None else self.continued.thought.events)
        end = None if self.segment is None or self.segment.end is None else self.segment.end + self.inherited
        if (generated if end is None else end) > first:
            waited_for = "the pool was not under memory pressure" if self.totals.deferred else "no query slot was free"
            return f"{waited_for} when a compression was due"
        if end is not None:
            return f"the think segment ended before {first} generated tokens, where the first compression is due"
        return f"finished before {first} generated tokens, where the first compression is due"
