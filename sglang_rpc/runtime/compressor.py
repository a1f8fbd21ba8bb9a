"""The orchestrator: asks for decisions, step by step, hands compressions to a backend, and commits them.

`poll` and `early` are host arithmetic on one request; `compress` is device work on all requests that are due. Neither
waits for the device, and neither knows SGLang: the hooks hand in lengths, tensors and one collective.
"""

import zlib
from array import array
from collections.abc import Callable, Sequence

import torch

from sglang_rpc.backends.base import Backend
from sglang_rpc.backends.choose import make_backend
from sglang_rpc.backends.draft_backend import DraftBackend
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.memory.speculative_rows import SpeculativeRows
from sglang_rpc.memory.window_slots import WindowPool
from sglang_rpc.policy.lightthinker import Gists, Thoughts
from sglang_rpc.policy.resolve import find_policy
from sglang_rpc.runtime import decision
from sglang_rpc.runtime.decision import CheckAgain, Compress, QuerySlot
from sglang_rpc.runtime.recording import Recorder
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.segment import SegmentTracker, ThinkMarkers
from sglang_rpc.runtime.totals import Counters
from sglang_rpc.types import NEVER, Compression, KVLayer, LayersByKind, Observer


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
        window_pool: WindowPool | None = None,
        reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
        speculative: SpeculativeRows | None = None,
        drafts: Sequence[KVLayer] = (),
        reduce_drafts: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        """
        Args:
            layers: the layers whose KV is compressed; those with full attention in the order of the ring's layers.
            req_to_token: int [rows, max_context]: pool slot of each row position.
            markers: how thoughts begin and end; None: every request has scope `all`.
            gists: of policy lightthinker, which needs them.
            window_pool: of window layers that are not among `layers`, but have a pool of their own.
            reduce: sums a float32 tensor over tensor-parallel ranks; None on one rank, or where heads stay apart.
            drafts: a draft model's layers, in the order of the ring's queries of it.
            reduce_drafts: as `reduce`, of these; heads may stay apart in one model, and share latents in the other.
            speculative: where a step may add several tokens; it is told what rows lack and where they must stop.
        """
        self.config = config
        by_kind = LayersByKind.of(layers)
        self.layers = by_kind.full  #: whose candidates are scored
        own = window_pool or WindowPool(layers=0, reach=0, page=1)
        self.window_layers = len(by_kind.windows) + own.layers  #: that keep the newest entries
        #: Of its sliding windows: entries before its own that a token sees; 0: none.
        self.reach = max(by_kind.reach, own.reach)
        self.page = own.page  #: compressions evict multiples of so many entries
        self.ring = ring
        self.markers = markers
        self.gists = gists
        self.dates_kept = config.when == "always"  #: whether due dates are kept: always, or under memory pressure
        self.counters = Counters()
        self.reduces = reduce is not None or reduce_drafts is not None
        self.speculative = speculative
        self.recorder = Recorder(ring)
        self._backend = make_backend(config, layers, ring, req_to_token, reduce)
        self._draft: Backend | None = None
        if drafts:
            assert ring.draft is not None, "a draft's layers are scored with its own queries"
            made = make_backend(config, drafts, ring.draft, req_to_token, reduce_drafts)
            self._draft = DraftBackend(made, drafts, req_to_token)

    def begin(self, state: RequestState, prompt: Sequence[int]) -> None:
        """Read a new request's prompt for think markers, if its scope asks for it; begin to look for gists.

        Its compressions leave the model's sliding windows whole from now on.
        """
        state.reach, state.page = self.reach, self.page
        state.stride = 1 if self.speculative is None else self.speculative.stride
        state.queries_before = int(self.ring.draft is not None)
        if state.options.scope == "think":
            assert self.markers is not None, "scope think needs think markers"
            state.segment = SegmentTracker(self.markers, prompt)
        if self.gists is not None:
            state.thoughts = Thoughts(self.gists)

    def poll(
        self,
        state: RequestState,
        row: int,
        prompt: Sequence[int],
        generated: int,
        output_ids: Sequence[int],
        lag: int = 0,
    ) -> Compression | None:
        """The compression that is due now, if one is. Call when the row's length reaches `state.clock.check_at`.

        It says when to call again, and takes or gives back the request's query slot; a compression counts only once
        `commit` is called.

        Args:
            row: the request's row.
            prompt: its prompt's token ids.
            generated: logical entries of its region; their queries are, or are about to be, in the ring.
            output_ids: the tokens that it generated; as many as have entries are read, which are known at this point
                whether or not scheduling overlaps with the forward pass.
            lag: entries that the region may have beside, of a step in flight: with any, nothing is compressed now.
        """
        state.read(output_ids, generated)
        decided = decision.poll(state, generated, self.dates_kept, lag)
        if isinstance(decided, Compress) or decided.passed is not None:
            self.recorder.claim(state.recording)  # a row that slept is not polled R entries before its due date
        if isinstance(decided, Compress):
            return self._compression(state, decided, row, prompt, generated, output_ids)
        self._wait(state, decided, row, state.front(len(prompt)), generated, lag)
        return None

    def early(
        self,
        state: RequestState,
        row: int,
        prompt: Sequence[int],
        generated: int,
        output_ids: Sequence[int],
        ratio: float,
    ) -> Compression | None:
        """A compression before the due date, at `ratio`, with `poll`'s other arguments; its tokens have been read.

        None if its window is not recorded, or it would evict less than a window. Changes nothing.
        """
        decided = decision.early(state, generated, ratio)
        return None if decided is None else self._compression(state, decided, row, prompt, generated, output_ids)

    def commit(self, state: RequestState, c: Compression, slots_freed: int) -> None:
        """Record that `c`, due, early or late, was applied and freed `slots_freed` pool slots."""
        if state.totals.compressions == 0:
            self.counters.requests_compressed += 1
        state.clock.evict(c.evicted, c.generated)
        if self.speculative is not None:
            self.speculative.evict(c.row, state.evicted)
        state.clock.pass_dates(c.event)
        state.totals.compressed(c, slots_freed)
        self.counters.compressed(c, slots_freed)
        if self.recorder.waiting or self.recorder.keeps_free:
            self.release_slot(state)  # to those whose turn it is, even if its own next date is near
        self._wait(
            state, decision.next_date(state, c.generated, c.event), c.row, c.prompt_length - c.offset, c.generated
        )

    def record_ahead(self, state: RequestState, row: int, generated: int, lag: int = 0) -> bool:
        """Begin to record a request's queries ahead of time; False if no query slot is free. `lag`: as in `poll`."""
        return self.recorder.record_ahead(state.recording, row, generated + lag)

    def stop_recording_ahead(self, state: RequestState) -> None:
        """Stop recording for a request ahead of time, unless its due date needs the slot by now."""
        if state.recording.ahead:
            self.release_slot(state)
            state.clock.check_now()

    def release_slot(self, state: RequestState) -> None:
        """Give back the request's query slot, if it holds one; its row has no date to stop at then."""
        if self.speculative is not None and state.recording.slot is not None:
            self.speculative.stop_at(self.ring.row_of(state.recording.slot), NEVER)
        self.recorder.release(state.recording)

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream: every layer of every request that is due.

        Afterwards the row positions `[begin, new_end)` hold what was kept, in order; nothing else has changed.
        """
        self._backend.compress(compressions)
        if self._draft is not None:
            self._draft.compress(compressions)

    def observe(self, observer: Observer) -> None:
        """From now on show `observer` what each compression keeps, on the stream that it is applied on."""
        self._backend.observer = observer

    @property
    def scoring(self) -> str:
        """Which implementation compresses: `reference` (PyTorch) or `triton`."""
        return self._backend.name

    @property
    def implementations(self) -> tuple[str, ...]:
        """As `scoring`; then that of a draft's layers, if there is one."""
        return (self._backend.name,) if self._draft is None else (self._backend.name, self._draft.name)

    def _wait(
        self, state: RequestState, decided: CheckAgain, row: int, prompt: int, generated: int, lag: int = 0
    ) -> None:
        """Do as `decided`; where the due date needs a query slot and none is free, try again in the next step."""
        at = decided.at
        if decided.slot is QuerySlot.DUE:
            if not self.recorder.record(state.recording, row, generated + lag):
                self.counters.slot_waits += 1
                at = generated + 1
            elif self.speculative is not None:
                self.speculative.stop_at(row, state.clock.physical(at, prompt))
        elif decided.slot is QuerySlot.NONE or not state.recording.ahead:
            self.release_slot(state)
        if decided.passed is not None:
            state.clock.pass_dates(decided.passed)
        if decided.deferred:
            state.totals.defer()
        state.clock.check_again(at, prompt)

    def _compression(
        self,
        state: RequestState,
        decided: Compress,
        row: int,
        prompt: Sequence[int],
        generated: int,
        output_ids: Sequence[int],
    ) -> Compression:
        taken, front, recording = state.taken, state.front(len(prompt)), state.recording
        return Compression(
            row=row,
            slot=recording.slot or 0,  # lightthinker needs no queries
            prompt_length=front + state.offset,
            offset=state.offset,
            generated=generated,
            window=decided.window,
            begin=front + decided.begin,
            end=state.clock.physical(generated, front),
            keep=decided.keep,
            event=decided.event,
            late=decided.late,
            early=decided.early,
            query_before=recording.slot is not None and recording.complete_at(decided.window + 1) <= generated,
            seed=self._seed(prompt if taken is None else taken.text, output_ids, generated - state.inherited),
        )

    def _seed(self, prompt: Sequence[int], output_ids: Sequence[int], generated: int) -> int:
        """Equal for equal texts, whatever else the server does; 0 where nothing is drawn at random."""
        policy = find_policy(self.config.policy)
        if policy is None or not policy.seeded:
            return 0
        text = array("q", [self.config.policy_seed, *prompt, *output_ids[:generated]])
        return zlib.crc32(text.tobytes())
