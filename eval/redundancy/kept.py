"""Whether what compressions kept repeats itself less than what they could have kept: from traces of `--rpc-trace`.

Looked at is what stood before the window of a request's last compression: of that a policy has chosen. Each set (a
layer, or a KV head of it) kept some of these tokens; beside them stand

    all      everything that stood there
    newest   as many as were kept, the last ones
    random   as many as were kept, drawn by lot

repeated   share of tokens whose n-gram in the text, ending there, had been there before: counts are of the text, so it
           can be compared whatever the number of tokens
entropy    of n-grams of the tokens as they stand side by side in the cache: comparable where they are equally many, so
           not with `all`

An old token has been through more compressions than a new one, and new ones repeat more, having more text before them.
So whoever asks what the scores are worth compares with a trace of `--rpc-policy random`, whose tokens are as old.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from eval.accuracy.errors import EvalError
from eval.accuracy.statistics import paired
from eval.redundancy.entropy import entropy, repeats, share
from eval.redundancy.measure import ORDERS, standard_error
from eval.trace_view import reader
from eval.trace_view.holdings import compose

CHOICES = ("all", "kept", "newest", "random")
#: Lots drawn for each request, of which the mean is taken.
DRAWS = 16


@dataclass(frozen=True)
class Choice:
    """One request's tokens under one choice; means over sets, or over draws."""

    trace: str
    choice: str
    n: int
    tokens: int
    repeated: float
    entropy: float  #: bits
    sets: int


@dataclass(frozen=True)
class Summary:
    """Means over requests; errors are standard errors."""

    choice: str
    n: int
    requests: int
    tokens: float
    repeated: float
    repeated_error: float
    repeated_to_random: float  #: difference to `random`, request by request
    repeated_to_random_error: float
    entropy: float
    entropy_error: float


def choices(path: Path, seed: int = 0) -> list[Choice]:
    """A row a choice and n. Raises EvalError for a file that is no trace, or whose last kept set is not known."""
    trace = reader.read(path)
    holdings = compose(trace)
    last = max((i for i, stage in enumerate(holdings.stages) if stage.compression is not None), default=None)
    held = None if last is None else holdings.held(last)
    if last is None or held is None:
        raise EvalError(f"{path} does not say what was kept last; leave it out")
    compression = trace.compressions[-1]
    start = min(c.begin for c in trace.compressions) - len(trace.prompt)
    region = range(start, compression.generated - compression.window)
    kept = [np.flatnonzero(mask[region.start : region.stop]) + region.start for mask in held]
    return list(_rows(path.name, trace.output, region, kept, np.random.default_rng(seed)))


def _rows(
    name: str, output: Sequence[int], region: range, kept: Sequence[np.ndarray], lots: np.random.Generator
) -> Iterator[Choice]:
    count = len(kept[0])
    positions: dict[str, list[Sequence[int]]] = {
        "all": [region],
        "kept": [found.tolist() for found in kept],
        "newest": [region[len(region) - count :]],
        "random": [sorted(lots.choice(region, count, replace=False).tolist()) for _ in range(DRAWS)],
    }
    for n in ORDERS:
        marks = repeats(output, n)
        for choice in CHOICES:
            yield Choice(
                trace=name,
                choice=choice,
                n=n,
                tokens=len(positions[choice][0]),
                repeated=fmean(share(marks[i] for i in mine) for mine in positions[choice]),
                entropy=fmean(entropy([output[i] for i in mine], n) for mine in positions[choice]),
                sets=len(kept),
            )


def summary(rows: Sequence[Choice]) -> list[Summary]:
    found = []
    for n in ORDERS:
        of_n = [row for row in rows if row.n == n]
        random = {row.trace: row.repeated for row in of_n if row.choice == "random"}
        for choice in CHOICES:
            mine = [row for row in of_n if row.choice == choice]
            repeated, entropies = [row.repeated for row in mine], [row.entropy for row in mine]
            difference, error, _ = paired({row.trace: row.repeated for row in mine}, random)
            found.append(
                Summary(
                    choice=choice,
                    n=n,
                    requests=len(mine),
                    tokens=fmean(row.tokens for row in mine),
                    repeated=fmean(repeated),
                    repeated_error=standard_error(repeated),
                    repeated_to_random=difference,
                    repeated_to_random_error=error,
                    entropy=fmean(entropies),
                    entropy_error=standard_error(entropies),
                )
            )
    return found
