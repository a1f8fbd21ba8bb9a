"""A row a text and arm, from its file of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any

import numpy as np

from eval.compare.arms import Arm
from eval.fidelity.forced import COLUMNS


@dataclass(frozen=True)
class Row:
    """Means over the tokens after the first compression. KV entries are those after the prompt."""

    arm: str
    policy: str
    interval: int
    window: int
    ratio: float
    text: str
    tokens: int  #: that the means are over
    compressions: int
    kl: float  #: nats per token
    kl_before: float  #: nats per token before the first compression: what the machine's arithmetic alone makes
    agree: float
    loss: float  #: nats per token
    to_full: float  #: loss minus that of the full KV cache on the same tokens
    held_mean: float  #: KV entries that a prediction saw, over all of the text's tokens
    held_peak: int
    held_share: float  #: held_mean of that of the full KV cache


NAMES = tuple(field.name for field in fields(Row))


def first_compressed(arm: Arm) -> int:
    """Index of the first token that is predicted from compressed KV: the one before it was predicted from R + P."""
    return arm.window + arm.interval + 1


def row(arm: Arm, text: str, compressions: int, ours: np.ndarray, full: np.ndarray) -> Row:
    """Of two files of tokens, [tokens, columns]: this arm's and the full KV cache's."""
    first = first_compressed(arm)
    kl, agree, loss, held = (ours[:, COLUMNS.index(name)] for name in ("kl", "agree", "loss", "held"))
    full_loss, full_held = (full[:, COLUMNS.index(name)] for name in ("loss", "held"))
    return Row(
        *(arm.name, arm.policy, arm.interval, arm.window, arm.ratio, text, len(ours) - first, compressions),
        kl=float(kl[first:].mean()),
        kl_before=float(kl[:first].mean()),
        agree=float(agree[first:].mean()),
        loss=float(loss[first:].mean()),
        to_full=float((loss[first:] - full_loss[first:]).mean()),
        held_mean=float(held.mean()),
        held_peak=int(held.max()),
        held_share=float(held.mean() / full_held.mean()),
    )


def of_samples(samples: Sequence[dict[str, Any]]) -> list[Row]:
    """As they come back from an arm's file."""
    return [Row(**{name: sample[name] for name in NAMES}) for sample in samples]


def mean(rows: Sequence[Row], name: str) -> float:
    """Over texts."""
    return fmean(getattr(row, name) for row in rows)
