"""The lines of a step's log that the summary shows."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.gpu_check.step import Step

#: Before lines of the log that are not the command's own.
OURS = "[gpu_check] "
WIDTH = 230  #: characters of a line
MOST_DETAILS, MOST_FAILURES, LAST = 16, 8, 3
#: pytest's list of failures, then its reasons, then what Python says of an exception.
FAILURE = re.compile(r"^(FAILED|ERROR) ")
REASON = re.compile(r"^E  |^\w*(Error|Exception|Interrupt)\b|\bCUDA error\b|Segmentation fault")


@dataclass(frozen=True)
class Digest:
    """`proven`: the log shows what the step is to show."""

    headline: str
    details: tuple[str, ...]
    proven: bool


def digest(log: Path, step: Step, failed: bool) -> Digest:
    """Of a `log` of any size: the headline, the step's details, and where it `failed` what there is of a reason."""
    headline, proven = "", False
    details: list[str] = []
    failures: list[str] = []
    reasons: deque[str] = deque(maxlen=MOST_FAILURES)
    last: deque[str] = deque(maxlen=LAST)
    for line in _lines(log):
        proven = proven or re.search(step.proof or step.headline, line) is not None
        if step.details and re.search(step.details, line):
            details.append(line)
        if re.search(step.headline, line):
            headline = line
        if FAILURE.search(line):
            failures.append(line)
        elif REASON.search(line):
            reasons.append(line)
        if line.strip():
            last.append(line)
    shown = [line for line in details if line != headline][:MOST_DETAILS]
    if failed or not proven:
        shown += failures[:MOST_FAILURES]
        shown += list(dict.fromkeys(reasons)) or [line for line in last if line != headline]
    return Digest(_cut(headline), tuple(map(_cut, shown)), proven)


def _lines(log: Path) -> Iterator[str]:
    """A progress bar's states are lines too."""
    with log.open(errors="replace", newline="") as file:
        for text in file:
            yield from (line for line in re.split(r"[\r\n]+", text) if line and not line.startswith(OURS))


def _cut(line: str) -> str:
    # Colours and other control characters would be shown by a terminal, not sent.
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.removeprefix("[check] ")).strip()[:WIDTH]
