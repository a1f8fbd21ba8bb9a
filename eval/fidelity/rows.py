"""A row a text and arm, from its file of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import numpy as np

from eval.compare.arms import FULL, Arm
from eval.fidelity.forced import COLUMNS
from sglang_rpc.policy.budget import Budget


@dataclass(frozen=True)
class Row:
    """Means over the tokens after the first compression. KV entries are those after the prompt."""

    arm: str
    policy: str
    interval: int
    window: int
    ratio: float
    min_kept: int
    text: str
    tokens: int  #: that the means are over
    compressions: int
    kl: float  #: nats per token
    kl_before: float  #: nats per token before the first compression: what the machine's arithmetic alone makes
    agree: float
    loss: float  #: nats per token
    to_full: float  #: loss minus that of the full KV cache on the same tokens
    mean_entries: float  #: KV entries that a prediction saw, over all of the text's tokens
    peak_entries: int
    mean_share: float  #: mean_entries of that of the full KV cache


NAMES = tuple(field.name for field in fields(Row))


def first_compressed(arm: Arm) -> int:
    """Index of the first token that is predicted from compressed KV: all entries were held when the last was."""
    return _budget(arm).next_due(0) + 1


def compressions(arm: Arm, tokens: int) -> int:
    """How many a request of that many tokens has.

    The last token gets no KV entry, and the step that predicts it compresses nothing. On dates when there are no more
    candidates than the floor, nothing is evicted.
    """
    budget = _budget(arm)
    return 0 if arm.policy == FULL else max(0, budget.compressions_due(tokens - 2) - budget.least // budget.interval)


def _budget(arm: Arm) -> Budget:
    return Budget(arm.interval, arm.window, int(arm.interval / arm.ratio), arm.min_kept)


def row(arm: Arm, text: str, ours: np.ndarray, full: np.ndarray) -> Row:
    """Of two files of tokens, [tokens, columns]: this arm's and the full KV cache's."""
    first = first_compressed(arm)
    kl, agree, loss, held = (ours[:, COLUMNS.index(name)] for name in ("kl", "agree", "loss", "held"))
    full_loss, full_held = (full[:, COLUMNS.index(name)] for name in ("loss", "held"))
    return Row(
        *(arm.name, arm.policy, arm.interval, arm.window, arm.ratio, arm.min_kept, text),
        tokens=len(ours) - first,
        compressions=compressions(arm, len(ours)),
        kl=float(kl[first:].mean()),
        kl_before=float(kl[:first].mean()),
        agree=float(agree[first:].mean()),
        loss=float(loss[first:].mean()),
        to_full=float((loss[first:] - full_loss[first:]).mean()),
        mean_entries=float(held.mean()),
        peak_entries=int(held.max()),
        mean_share=float(held.mean() / full_held.mean()),
    )


def of_samples(samples: Sequence[dict[str, Any]]) -> list[Row]:
    """As they come back from an arm's file."""
    return [Row(**{name: sample[name] for name in NAMES}) for sample in samples]


def mean(rows: Sequence[Row], name: str) -> float:
    """Over texts."""
    return fmean(getattr(row, name) for row in rows)
