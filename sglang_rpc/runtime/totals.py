"""What has been compressed so far: over one request's life, and over a server's."""

from __future__ import annotations

from dataclasses import dataclass, field

from sglang_rpc.types import Compression


@dataclass
class Tally:
    """Compressions and what they gave. Only its own methods change it."""

    compressions: int = 0
    evicted: int = 0  #: KV entries evicted, counted once per position (not per layer)
    slots_freed: int = 0  #: slots given back to the pool, in whole pages: the unfilled rest of a page counts
    late: int = 0  #: compressions after their due date
    early: int = 0  #: compressions before their due date, to spare a retraction

    def compressed(self, c: Compression, slots_freed: int) -> None:
        """Count `c`, which freed `slots_freed` pool slots."""
        self.compressions += 1
        self.evicted += c.evicted
        self.slots_freed += slots_freed
        self.late += c.late
        self.early += c.early


@dataclass
class Steps:
    """Steps of a request on a server that speculates, and the tokens that they gave it."""

    steps: int = 0
    tokens: int = 0

    @property
    def tokens_per_step(self) -> float:
        """On average; 0 without a step."""
        return round(self.tokens / self.steps, 3) if self.steps else 0.0

    def less(self, others: Steps) -> Steps:
        """Those that are not among `others`."""
        return Steps(self.steps - others.steps, self.tokens - others.tokens)


@dataclass
class Totals(Tally):
    """Of one request, retractions included."""

    retractions: int = 0
    restored: int = 0  #: retractions after which the request came back with the KV it had
    deferred: bool = False  #: whether a due date was not kept, for want of memory pressure
    reused: int = 0  #: tokens of the prompt that were taken over compressed
    reused_held: int = 0  #: KV entries that stood for them
    continued: int = 0  #: tokens that earlier requests generated of the region it goes on with
    cuts: int = 0  #: of a server that speculates: steps that were cut at a due date
    before: Steps = field(default_factory=Steps)  #: up to the first compression
    after: Steps = field(default_factory=Steps)  #: after it

    def retracted(self) -> None:
        """Count a retraction."""
        self.retractions += 1

    def came_back(self) -> None:
        """Count a retraction after which the request has the KV it had."""
        self.restored += 1

    def took_over(self, tokens: int, entries: int) -> None:
        """Note that `tokens` of the prompt are held as `entries` that an earlier request left; 0 if none are now."""
        self.reused, self.reused_held = tokens, entries

    def go_on(self, tokens: int) -> None:
        """Note that earlier requests generated `tokens` of its region; 0 if it has one of its own."""
        self.continued = tokens

    def cut(self, steps: int) -> None:
        """Count steps that ended at a due date, though more tokens were accepted."""
        self.cuts += steps

    def stepped(self, steps: Steps) -> None:
        """Note `steps` of the request so far: without a compression yet, all of them are before the first."""
        if self.compressions == 0:
            self.before = steps
        else:
            self.after = steps.less(self.before)

    def defer(self) -> None:
        """Note that due dates are not kept now."""
        self.deferred = True


@dataclass
class Counters(Tally):
    """Of the server since it started, over all requests."""

    slot_waits: int = 0  #: steps in which a compression was put off because no query slot was free
    requests_compressed: int = 0
    restored: int = 0  #: retracted requests that came back with the KV they had
    backups_refused: int = 0  #: retracted requests for whose KV the host backups had no capacity
    reused_requests: int = 0  #: requests that took over compressed KV
    reused_tokens: int = 0  #: tokens of their prompts that it stood for
    stale_aliases: int = 0  #: compressed texts that were asked for and had been evicted
    speculative_cuts: int = 0  #: steps of requests that were cut at a due date
