"""The orchestrator: decides, step by step, which requests are compressed, and carries it out.

`poll` is host arithmetic on one request; `compress` is device work on all requests that are due. Neither waits for
the device, and neither knows SGLang: the seams hand in lengths, tensors and one collective.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sglang_rpc.backends.choose import make_backend
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy import budget
from sglang_rpc.policy.lightthinker import Gists, Thoughts
from sglang_rpc.policy.table import POLICIES
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import SegmentTracker, ThinkMarkers
from sglang_rpc.types import NEVER, Compression, KVLayer, Observer


@dataclass
class Counters:
    """What the server has done since it started, over all requests."""

    compressions: int = 0
    evicted: int = 0  #: KV entries
    slots_freed: int = 0
    late: int = 0
    early: int = 0
    slot_waits: int = 0  #: steps in which a compression was put off because no query slot was free
    requests_compressed: int = 0
    restored: int = 0  #: retracted requests that came back with the KV they had
    backups_refused: int = 0  #: retracted requests for whose KV the host backups had no room


class Compressor:
    """Compresses the rows of one model on one rank."""

    def __init__(
        self,
        config: RPCConfig,
        layers: Sequence[KVLayer],
        ring: QueryRing,
        req_to_token: torch.Tensor,
        *,
        markers: ThinkMarkers | None = None,
        gists: Gists | None = None,
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        """
        Args:
            layers: the layers whose KV is compressed, in the order of the ring's layers.
            req_to_token: int [rows, max_context]: pool slot of each row position.
            markers: how thoughts begin and end; None: every request has scope `all`.
            gists: of policy lightthinker, which needs them.
            reduce: sums a float32 tensor over tensor-parallel ranks; None on one rank, or where heads stay apart.
        """
        self.config = config
        self.layers = layers
        self.ring = ring
        self.markers = markers
        self.gists = gists
        self.under_pressure = (
            config.when == "always"
        )  #: whether due dates are kept: always, or while the pool is under memory pressure
        self.counters = Counters()
        self.reduces = reduce is not None
        self._path = make_backend(config, layers, ring, req_to_token, reduce)

    def track_segment(self, state: RequestState, prompt: Sequence[int]) -> None:
        """Read the prompt for think markers, once, if the request's scope asks for it; begin to look for gists."""
        if state.options.scope == "think" and state.segment is None:
            assert self.markers is not None, "scope think needs think markers"
            state.segment = SegmentTracker(self.markers, prompt)
        if self.gists is not None and state.thoughts is None:
            state.thoughts = Thoughts(self.gists)

    def poll(
        self, state: RequestState, row: int, prompt: Sequence[int], generated: int, output_ids: Sequence[int]
    ) -> Compression | None:
        """The compression that is due now, if one is. Call when the row's length reaches `state.check_at`.

        Args:
            row: the request's row.
            prompt: its prompt's token ids.
            generated: logical entries behind the prompt; their queries are, or are about to be, in the ring.
            output_ids: the tokens generated; the first `generated` of them are looked at, which are known at this
                point whether or not scheduling overlaps with the forward pass.
        """
        if not state.active:
            self.release_slot(state)
            state.check_at = NEVER
            return None
        self.track_segment(state, prompt)
        if state.segment is not None:
            state.segment.advance(output_ids, generated)
        if not self.under_pressure:
            self.release_slot(state)
            state.deferred = True
            state.check_at = NEVER  # until the pool is under memory pressure
            return None
        if state.thoughts is not None:
            return self._oldest_thought(state, state.thoughts, row, len(prompt), generated, output_ids)
        check_at_length = self._next_check(state, row, generated)
        if check_at_length > generated:
            state.check_at = min(NEVER, len(prompt) + check_at_length - state.evicted)
            return None
        compression = self._decide(state, row, len(prompt), generated, self._seed(prompt, output_ids, generated))
        # A late compression dropped more than its share: the next date may find fewer candidates than its budget.
        if compression.keep >= compression.candidates:
            self._after_due(state, len(prompt), generated)
            return None
        return compression

    @staticmethod
    def _oldest_thought(
        state: RequestState,
        thoughts: Thoughts,
        row: int,
        prompt_length: int,
        generated: int,
        output_ids: Sequence[int],
    ) -> Compression | None:
        """`poll` of policy lightthinker: the oldest thought in the row that has its gists. Nothing of it is kept; all
        that stands behind it is the window."""
        if state.start is None:
            state.check_at = prompt_length + generated + 1
            return None
        thoughts.advance(output_ids, generated, state.start)
        if state.events == len(thoughts.done):
            state.check_at = prompt_length + thoughts.next_check - state.evicted
            return None
        thought = thoughts.done[state.events]
        state.events += 1
        return Compression(
            row=row,
            slot=0,  # no queries
            prompt_length=prompt_length,
            generated=generated,
            window=generated - thought.end,
            begin=prompt_length + thought.begin - state.evicted,
            end=prompt_length + generated - state.evicted,
            keep=0,
            event=state.events,
            late=generated != thought.complete,
        )

    def pre_record(self, state: RequestState, row: int, generated: int) -> bool:
        """Begin to record a request's queries ahead of time; False if no query slot is free."""
        if state.slot is None:
            state.slot = self.ring.acquire(row)
            if state.slot is None:
                return False
            state.slot_since = generated
            state.pre_recording = True
        return True

    def stop_pre_recording(self, state: RequestState) -> None:
        """Stop recording for a request that was pre_recording, unless its due date needs it by now."""
        if state.pre_recording:
            self.release_slot(state)
            state.check_at = 0

    def early(
        self,
        state: RequestState,
        row: int,
        prompt: Sequence[int],
        generated: int,
        output_ids: Sequence[int],
        ratio: float,
    ) -> Compression | None:
        """A compression before the due date, at `ratio`, with `poll`'s other arguments.

        None if its window is not recorded, or it would evict less than a window. Whether it is carried out is the
        caller's choice: nothing has changed until `commit`.
        """
        options = state.options
        if state.segment is not None:
            state.segment.advance(output_ids, generated)
        gain = state.early_gain(generated, ratio)
        if gain < options.window or state.slot is None or generated < state.slot_since + options.window:
            return None
        assert state.start is not None, "what is gained stands behind a start"
        keep = generated - state.evicted - state.start - options.window - gain
        seed = self._seed(prompt, output_ids, generated)
        return self._compression(state, row, len(prompt), generated, keep, early=True, seed=seed)

    def _next_check(self, state: RequestState, row: int, generated: int) -> int:
        """The logical length at which something is to be done; not above `generated` if a compression is due now."""
        options = state.options
        if not state.active:
            self.release_slot(state)
            return NEVER
        if state.start is None:
            return generated + options.interval  # no start yet, so no due date before that
        due = state.due()
        if generated < due - options.window:
            return due - options.window
        state.pre_recording = False  # from here on the slot is the due date's
        if state.slot is None:
            state.slot = self.ring.acquire(row)
            if state.slot is None:
                self.counters.slot_waits += 1
                return generated + 1
            state.slot_since = generated
        return max(due, state.slot_since + options.window)

    def _seed(self, prompt: Sequence[int], output_ids: Sequence[int], generated: int) -> int:
        """The same for the same text, whatever else the server does; 0 where nobody draws lots."""
        if not POLICIES[self.config.policy].seeded:
            return 0
        text = array("q", [self.config.policy_seed, *prompt, *output_ids[:generated]])
        return zlib.crc32(text.tobytes())

    def _decide(self, state: RequestState, row: int, prompt_length: int, generated: int, seed: int) -> Compression:
        options = state.options
        assert state.start is not None
        late = generated != state.due()
        state.events = budget.compressions_due(generated - state.start, options.interval, options.window)
        keep = budget.kept_candidates(state.events, options.budget_step)
        return self._compression(state, row, prompt_length, generated, keep, late=late, seed=seed)

    @staticmethod
    def _compression(
        state: RequestState,
        row: int,
        prompt_length: int,
        generated: int,
        keep: int,
        *,
        seed: int,
        late: bool = False,
        early: bool = False,
    ) -> Compression:
        assert state.slot is not None and state.start is not None
        return Compression(
            row=row,
            slot=state.slot,
            prompt_length=prompt_length,
            generated=generated,
            window=state.options.window,
            begin=prompt_length + state.start,
            end=prompt_length + generated - state.evicted,
            keep=keep,
            event=state.events,
            late=late,
            early=early,
            seed=seed,
        )

    def _after_due(self, state: RequestState, prompt_length: int, generated: int) -> None:
        """Keep the query slot only if the next date is less than a window away."""
        check_at_length = state.due() - state.options.window
        if generated < check_at_length:
            self.release_slot(state)
        else:
            check_at_length = state.due()
            state.pre_recording = False
        state.check_at = prompt_length + check_at_length - state.evicted

    def release_slot(self, state: RequestState) -> None:
        """Give back the request's query slot, if it holds one."""
        if state.slot is not None:
            self.ring.release(state.slot)
            state.slot = None
            state.pre_recording = False

    def commit(self, state: RequestState, compression: Compression, slots_freed: int) -> None:
        """Record that `compression`, which `poll` returned, was carried out and freed `slots_freed` pool slots."""
        if state.totals.compressions == 0:
            self.counters.requests_compressed += 1
        state.evicted += compression.evicted
        for totals in (state.totals, self.counters):
            totals.compressions += 1
            totals.evicted += compression.evicted
            totals.slots_freed += slots_freed
            totals.late += compression.late
            totals.early += compression.early
        if state.thoughts is not None:
            state.check_at = 0  # the next thought may have its gists too
        elif compression.early:
            # It goes on recording, for its due date or, if it was pre_recording, because it may have to give way again.
            state.check_at = compression.prompt_length + state.due() - state.options.window - state.evicted
        else:
            self._after_due(state, compression.prompt_length, compression.generated)

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream: every layer of every request that is due.

        Afterwards the row positions `[begin, new_end)` hold what was kept, in order; nothing else has changed.
        """
        self._path.compress(compressions)

    def observe(self, observer: Observer) -> None:
        """From now on show `observer` what each compression keeps, on the stream that it is carried out on."""
        self._path.observer = observer

    @property
    def scoring(self) -> str:
        """Which implementation compresses: `reference` (PyTorch) or `triton`."""
        return self._path.name
