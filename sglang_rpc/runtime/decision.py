"""When a request is compressed: decisions that change nothing.

    start           due - R            due = start + (n + 1) * P + R
      |   nothing     |   record queries   |  compress to (n + 1) * int(P / c) candidates

All lengths are logical: entries of the generated region, counted as generated.

A step of a server that speculates adds several tokens, and the one in flight may have added some that are not known
yet: its `lag`. A request may be up to `stride` tokens longer when it is polled next. It may run past every length but a
due date, so what must be done by a length is asked for `stride - 1` tokens before.
"""

from dataclasses import dataclass, replace
from enum import Enum

from sglang_rpc.policy.lightthinker import Thoughts
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.types import NEVER


class QuerySlot(Enum):
    """What becomes of the request's query slot while it waits."""

    NONE = "none"  #: it is given back
    AHEAD = "ahead"  #: it is given back, unless it was taken ahead of time
    DUE = "due"  #: one is held, or taken: the due date needs it


@dataclass(frozen=True)
class CheckAgain:
    """Nothing to compress now: poll again at `at`."""

    at: int  #: logical length; NEVER where nothing is to come
    slot: QuerySlot
    passed: int | None = None  #: due dates up to this one have passed with nothing to evict
    deferred: bool = False  #: due dates are not kept now


@dataclass(frozen=True)
class Compress:
    """A compression of `[begin, generated - window)`, as the row stands. Counts are KV entries."""

    begin: int  #: first candidate, counted in entries after the prompt that the row holds
    keep: int  #: candidates that survive
    window: int
    event: int  #: n, the budget that has been applied after it
    late: bool = False
    early: bool = False


def poll(state: RequestState, generated: int, dates_kept: bool, lag: int = 0) -> CheckAgain | Compress:
    """Decide what is to be done at `generated` logical entries, whose tokens `state` has read.

    Args:
        dates_kept: whether due dates are kept now: always, or only under memory pressure.
        lag: entries that it may have beside, of a step in flight: with any, it is not compressed now.
    """
    if not state.active:
        return CheckAgain(NEVER, QuerySlot.NONE)
    if not dates_kept:
        return CheckAgain(NEVER, QuerySlot.NONE, deferred=True)
    if state.thoughts is not None:
        return _oldest_thought(state, state.thoughts, generated)
    return _due(state, generated, lag)


def next_date(state: RequestState, generated: int, events: int) -> CheckAgain:
    """Decide when to poll again at `generated`, once `events` compressions are done."""
    if state.thoughts is not None:
        return CheckAgain(generated, QuerySlot.NONE)  # at once: the next thought may have its gists too
    due = state.due(events)
    if generated < (records := _records_from(state, due)):
        return CheckAgain(records, QuerySlot.AHEAD)
    return CheckAgain(due, QuerySlot.DUE)


def early(state: RequestState, generated: int, ratio: float) -> Compress | None:
    """A compression before the due date, at `ratio`.

    None if the request's window is not recorded, or less than a window of entries would be evicted.
    """
    window, recording = state.options.window, state.recording
    gain = early_gain(state, generated, ratio)
    if gain < window or recording.slot is None or generated < recording.complete_at(window):
        return None
    assert state.start is not None, "what is gained stands after a start"
    keep = generated - state.evicted - state.start - window - gain
    return Compress(state.start, keep, window, state.clock.events, early=True)


def early_gain(state: RequestState, generated: int, ratio: float) -> int:
    """Entries that a compression at `ratio` would evict now, before its due date; not above 0 if none."""
    if not state.active or state.start is None or state.thoughts is not None or state.shares_region:
        return 0  # a copy of a shared region would take more than it gives
    options = state.options
    region = generated - state.start
    keep = state.budget.early_kept(region, state.clock.events, ratio)
    candidates = region - state.evicted - options.window
    return candidates - state.budget.in_whole_pages(candidates, max(1, keep))


def _records_from(state: RequestState, due: int) -> int:
    """Where a window of queries begins to be recorded."""
    return due - state.options.window - state.queries_before - state.stride + 1


def _due(state: RequestState, generated: int, lag: int) -> CheckAgain | Compress:
    options, recording = state.options, state.recording
    if state.start is None:
        # No start yet, so no query is needed before that.
        return CheckAgain(generated + max(1, options.interval - state.stride + 1), QuerySlot.AHEAD)
    due = state.due(state.clock.events)
    if generated < (records := _records_from(state, due)):
        return CheckAgain(records, QuerySlot.AHEAD)
    recorded = generated + lag if recording.slot is None else recording.since
    at = max(due, recorded + options.window)
    if lag:
        at = max(at, generated + lag + 1)  # a length that it has not reached yet
    if at > generated:
        return CheckAgain(at, QuerySlot.DUE)
    events = state.budget.compressions_due(generated - state.start)
    candidates = generated - state.evicted - state.start - options.window
    keep = state.budget.in_whole_pages(candidates, state.budget.kept(events))
    # A late compression dropped more than its share: the next date may find fewer candidates than its budget.
    if keep >= candidates:
        return replace(next_date(state, generated, events), passed=events)
    return Compress(state.start, keep, options.window, events, late=generated != due)


def _oldest_thought(state: RequestState, thoughts: Thoughts, generated: int) -> CheckAgain | Compress:
    """Policy lightthinker: the oldest thought in the row that has its gists. Nothing of it is kept; all after it is
    the window."""
    if state.start is None:
        return CheckAgain(generated + 1, QuerySlot.NONE)
    if state.clock.events == len(thoughts.done):
        return CheckAgain(thoughts.next_check, QuerySlot.NONE)
    thought = thoughts.done[state.clock.events]
    return Compress(
        begin=thought.begin - state.evicted,
        keep=0,
        window=generated - thought.end,
        event=state.clock.events + 1,
        late=generated != thought.complete,
    )
