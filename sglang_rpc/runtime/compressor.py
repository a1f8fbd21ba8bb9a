"""The orchestrator: decides, step by step, which requests are compressed, and carries it out.

`look` is host arithmetic on one request; `compress` is device work on all requests that are due. Neither waits for
the device, and neither knows SGLang: the seams hand in lengths, tensors and one collective.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sglang_rpc.backends.choose import make_path
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy import budget
from sglang_rpc.policy.lightthinker import Gists, Thoughts
from sglang_rpc.policy.table import POLICIES
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import ThinkGate, ThinkMarkers
from sglang_rpc.types import NEVER, Compression, KVLayer, Witness


@dataclass
class Counters:
    """What the server has done since it started, over all requests."""

    compressions: int = 0
    evicted: int = 0  #: KV entries
    slots_freed: int = 0
    catch_ups: int = 0
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
        self.pressed = config.when == "always"  #: whether due dates are kept: always, or while the pool is pressed
        self.counters = Counters()
        self.reduces = reduce is not None
        self._path = make_path(config, layers, ring, req_to_token, reduce)

    def open_gate(self, state: RequestState, prompt: Sequence[int]) -> None:
        """Read the prompt for think markers, once, if the request's scope asks for it; begin to look for gists."""
        if state.options.scope == "think" and state.gate is None:
            assert self.markers is not None, "scope think needs think markers"
            state.gate = ThinkGate(self.markers, prompt)
        if self.gists is not None and state.thoughts is None:
            state.thoughts = Thoughts(self.gists)

    def look(
        self, state: RequestState, row: int, prompt: Sequence[int], generated: int, output_ids: Sequence[int]
    ) -> Compression | None:
        """The compression that is due now, if one is. Call when the row's length reaches `state.wake_at`.

        Args:
            row: the request's row.
            prompt: its prompt's token ids.
            generated: logical entries behind the prompt; their queries are, or are about to be, in the ring.
            output_ids: the tokens generated; the first `generated` of them are looked at, which are known at this
                point whether or not scheduling overlaps with the forward pass.
        """
        if not state.active:
            self.let_go(state)
            state.wake_at = NEVER
            return None
        self.open_gate(state, prompt)
        if state.gate is not None:
            state.gate.advance(output_ids, generated)
        if not self.pressed:
            self.let_go(state)
            state.dormant = True
            state.wake_at = NEVER  # until the pool is pressed
            return None
        if state.thoughts is not None:
            return self._oldest_thought(state, state.thoughts, row, len(prompt), generated, output_ids)
        look_at = self._next_look(state, row, generated)
        if look_at > generated:
            state.wake_at = min(NEVER, len(prompt) + look_at - state.evicted)
            return None
        compression = self._decide(state, row, len(prompt), generated, self._seed(prompt, output_ids, generated))
        # A catch-up dropped more than its share; at the next date there may be fewer candidates than the budget holds.
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
        """`look` of policy lightthinker: the oldest thought in the row that has its gists. Nothing of it is kept; all
        that stands behind it is the window."""
        if state.start is None:
            state.wake_at = prompt_length + generated + 1
            return None
        thoughts.advance(output_ids, generated, state.start)
        if state.events == len(thoughts.done):
            state.wake_at = prompt_length + thoughts.next_look - state.evicted
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
            catch_up=generated != thought.complete,
        )

    def arm(self, state: RequestState, row: int, generated: int) -> bool:
        """Begin to record a request's queries ahead of time; False if no query slot is free."""
        if state.slot is None:
            state.slot = self.ring.acquire(row)
            if state.slot is None:
                return False
            state.slot_since = generated
            state.armed = True
        return True

    def disarm(self, state: RequestState) -> None:
        """Stop recording for a request that was armed, unless its due date needs it by now."""
        if state.armed:
            self.let_go(state)
            state.wake_at = 0

    def early(
        self,
        state: RequestState,
        row: int,
        prompt: Sequence[int],
        generated: int,
        output_ids: Sequence[int],
        ratio: float,
    ) -> Compression | None:
        """A compression before the due date, at `ratio`, with `look`'s other arguments.

        None if its window is not recorded, or it would evict less than a window. Whether it is carried out is the
        caller's choice: nothing has changed until `settle`.
        """
        options = state.options
        if state.gate is not None:
            state.gate.advance(output_ids, generated)
        gain = state.early_gain(generated, ratio)
        if gain < options.window or state.slot is None or generated < state.slot_since + options.window:
            return None
        assert state.start is not None, "what is gained stands behind a start"
        keep = generated - state.evicted - state.start - options.window - gain
        seed = self._seed(prompt, output_ids, generated)
        return self._compression(state, row, len(prompt), generated, keep, early=True, seed=seed)

    def _next_look(self, state: RequestState, row: int, generated: int) -> int:
        """The logical length at which something is to be done; not above `generated` if a compression is due now."""
        options = state.options
        if not state.active:
            self.let_go(state)
            return NEVER
        if state.start is None:
            return generated + options.interval  # no start yet, so no due date before that
        due = state.due()
        if generated < due - options.window:
            return due - options.window
        state.armed = False  # from here on the slot is the due date's
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
        catch_up = generated != state.due()
        state.events = budget.compressions_due(generated - state.start, options.interval, options.window)
        keep = budget.kept_candidates(state.events, options.budget_step)
        return self._compression(state, row, prompt_length, generated, keep, catch_up=catch_up, seed=seed)

    @staticmethod
    def _compression(
        state: RequestState,
        row: int,
        prompt_length: int,
        generated: int,
        keep: int,
        *,
        seed: int,
        catch_up: bool = False,
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
            catch_up=catch_up,
            early=early,
            seed=seed,
        )

    def _after_due(self, state: RequestState, prompt_length: int, generated: int) -> None:
        """Keep the query slot only if the next date is less than a window away."""
        look_at = state.due() - state.options.window
        if generated < look_at:
            self.let_go(state)
        else:
            look_at = state.due()
            state.armed = False
        state.wake_at = prompt_length + look_at - state.evicted

    def let_go(self, state: RequestState) -> None:
        """Give back the request's query slot, if it holds one."""
        if state.slot is not None:
            self.ring.release(state.slot)
            state.slot = None
            state.armed = False

    def settle(self, state: RequestState, compression: Compression, slots_freed: int) -> None:
        """Record that `compression`, which `look` returned, was carried out and freed `slots_freed` pool slots."""
        if state.totals.compressions == 0:
            self.counters.requests_compressed += 1
        state.evicted += compression.evicted
        for totals in (state.totals, self.counters):
            totals.compressions += 1
            totals.evicted += compression.evicted
            totals.slots_freed += slots_freed
            totals.catch_ups += compression.catch_up
            totals.early += compression.early
        if state.thoughts is not None:
            state.wake_at = 0  # the next thought may have its gists too
        elif compression.early:
            # It goes on recording, for its due date or, if it was armed, because it may have to give way again.
            state.wake_at = compression.prompt_length + state.due() - state.options.window - state.evicted
        else:
            self._after_due(state, compression.prompt_length, compression.generated)

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream: every layer of every request that is due.

        Afterwards the row positions `[begin, new_end)` hold what was kept, in order; nothing else has changed.
        """
        self._path.compress(compressions)

    def show_kept(self, witness: Witness) -> None:
        """From now on show `witness` what each compression keeps, on the stream that it is carried out on."""
        self._path.witness = witness

    @property
    def scoring(self) -> str:
        """Which implementation compresses: `reference` (PyTorch) or `triton`."""
        return self._path.name
