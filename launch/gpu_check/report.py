"""summary.txt: a line a step as it ends, printed as it is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class State(Enum):
    """How a step ended. `SKIPPED`: it asks about something that this host does not have, which is no failure."""

    OK = "OK"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    NOT_RUN = "NOT RUN"
    SKIPPED = "SKIPPED"

    @property
    def well(self) -> bool:
        return self in (State.OK, State.SKIPPED)


@dataclass(frozen=True)
class Result:
    name: str
    state: State
    seconds: float = 0.0
    headline: str = ""
    details: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        took = f"{self.seconds:4.0f} s" if self.seconds else " " * 6
        first = f"{self.name:<16} {self.state.value:<8} {took}  {self.headline}".rstrip()
        return [first, *(f"    {line}" for line in self.details)]


class Summary:
    """The file and standard output, line by line, so that a run that is cut off leaves what it found."""

    def __init__(self, path: Path):
        self.path = path
        path.write_text("")

    def say(self, *lines: str) -> None:
        with self.path.open("a") as file:
            for line in lines:
                print(line, flush=True)
                file.write(line + "\n")


def verdict(results: list[Result], cuda: bool) -> str:
    """One sentence about all of them."""
    counts = Counter(result.state for result in results)
    counted = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    failed = [result.name for result in results if result.state in (State.FAILED, State.TIMEOUT)]
    open_questions = [result.name for result in results if result.state is State.NOT_RUN]
    if failed:
        return f"{counted}. Something does not work here: {', '.join(failed)}"
    if open_questions:
        return f"{counted}. Nothing failed, and these were not asked: {', '.join(open_questions)}"
    if not counts[State.OK]:
        return f"{counted}. Nothing was asked of this host"
    if not cuda:
        return f"{counted}. What can run without a GPU works; this says nothing about a GPU"
    return f"{counted}. sglang-rpc works on this GPU, as far as these steps ask"
