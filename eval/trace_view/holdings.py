"""What each layer held, and when: a trace's kept sets, which count entries of a row, composed into positions of tokens.

    stage 0       just before the first compression: everything generated is held
    stage k       just after compression k
    last stage    the end of the request, if the trace has it

A retraction whose row is rebuilt from tokens makes everything held again: an epoch ends, and the next begins whole.
A compression whose kept sets were left out makes what is held unknown until then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from eval.accuracy.errors import EvalError
from eval.trace_view.reader import Compression, Trace

#: The stage at which what is still held is dropped.
NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Stage:
    """Counts are of generated tokens, and the same for every set."""

    generated: int
    held: int
    evicted: int  #: so far in the request's whole life, what came back by a rebuild included
    epoch: int | None  #: None: which tokens are held is not known
    compression: Compression | None  #: None: the first stage, and the end
    rebuilt: bool = False  #: since the stage before, the row was rebuilt from tokens


@dataclass(frozen=True)
class Holdings:
    stages: list[Stage]
    #: An epoch: int32 [layers * heads, tokens], the stage at which each set dropped each token.
    epochs: list[np.ndarray]

    def held(self, stage: int) -> np.ndarray | None:
        """bool [layers * heads, generated]: which generated tokens each set holds; None if that is not known."""
        at = self.stages[stage]
        return None if at.epoch is None else self.epochs[at.epoch][:, : at.generated] > stage


@dataclass
class _Row:
    """The row as it is being followed. `positions` int32 [sets, held]: the tokens its entries belong to."""

    sets: int
    tokens: int
    generated: int = 0
    positions: np.ndarray | None = None  #: None: not known
    missing: int = 0  #: generated tokens that are not held
    epochs: list[np.ndarray] = field(default_factory=list)

    def rebuild(self) -> None:
        self.positions = np.empty((self.sets, 0), np.int32)
        self.generated = self.missing = 0
        self.epochs.append(np.full((self.sets, self.tokens), NEVER, np.int32))

    def grow(self, generated: int) -> None:
        if self.positions is not None:
            new = np.arange(self.generated, generated, dtype=np.int32)
            self.positions = np.concatenate([self.positions, np.broadcast_to(new, (self.sets, len(new)))], 1)
        self.generated = generated

    def drop(self, c: Compression, first: int, stage: int) -> None:
        """Leave out what `c` evicts; `first`: entries before its candidates."""
        self.missing += c.evicted
        if self.positions is None or c.kept is None:
            self.positions = None
            return
        head, candidates, window = np.split(self.positions, [first, first + c.candidates], axis=1)
        whose, which = np.nonzero(~c.kept)
        self.epochs[-1][whose, candidates[whose, which]] = stage
        self.positions = np.concatenate([head, candidates[c.kept].reshape(self.sets, c.keep), window], 1)

    @property
    def epoch(self) -> int | None:
        return None if self.positions is None else len(self.epochs) - 1


def compose(trace: Trace) -> Holdings:
    """Raises EvalError if the compressions do not follow from each other, or do not add up to the receipt."""
    row = _Row(trace.sets, len(trace.output))
    row.rebuild()
    prompt, evicted = len(trace.prompt), 0
    stages: list[Stage] = []
    for number, c in enumerate(trace.compressions, 1):
        missing = c.generated - (c.end - prompt)
        rebuilt = missing == 0 and row.missing > 0
        if rebuilt:
            row.rebuild()
        if missing != row.missing or c.generated < row.generated:
            raise EvalError(
                f"compression {number} of the trace finds {c.end - prompt} of {c.generated} tokens, which does not "
                "follow from the compressions before it: a line is missing, or the file was damaged"
            )
        row.grow(c.generated)
        if not stages:
            stages.append(Stage(c.generated, c.generated, 0, 0, None))
        row.drop(c, c.begin - prompt, number)
        evicted += c.evicted
        stages.append(Stage(c.generated, c.generated - row.missing, evicted, row.epoch, c, rebuilt))
    if trace.receipt is not None:
        stages.append(_end(trace, row, evicted))
    if not stages:
        raise EvalError("the trace ends before its first compression, so there is nothing to see yet")
    last = {stage.epoch: stage.generated for stage in stages}
    epochs = [dropped[:, : last.get(epoch, 0)] for epoch, dropped in enumerate(row.epochs)]
    return Holdings(stages, epochs)


def _end(trace: Trace, row: _Row, evicted: int) -> Stage:
    assert trace.receipt is not None
    receipt = {name: trace.receipt[name] for name in ("compressions", "generated", "held", "evicted")}
    rebuilt = receipt["held"] == receipt["generated"] and row.missing > 0
    if rebuilt:
        row.rebuild()
    found = {
        "compressions": len(trace.compressions),
        "generated": len(trace.output),
        "held": len(trace.output) - row.missing,
        "evicted": evicted,
    }
    if found != receipt or len(trace.output) < row.generated:
        raise EvalError(
            f"the trace adds up to {found}, and its receipt says {receipt}: a line is missing from the file"
        )
    row.grow(len(trace.output))
    return Stage(len(trace.output), found["held"], evicted, row.epoch, None, rebuilt)
