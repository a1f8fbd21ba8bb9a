"""What a task is made of: problems, and how what was said about one is judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    id: str
    message: str  #: the user's
    expected: Any  #: as a row tells it
    hidden: Any = None  #: more of what is expected, too much for a row


@dataclass(frozen=True)
class Verdict:
    correct: bool
    details: dict[str, Any] = field(default_factory=dict)  #: more of what was found, for the row
    error: str | None = None  #: why the grader failed; then it counts as wrong


def answer_part(said: str, thoughts: str, finish: str) -> str:
    """What was said behind the thoughts; nothing if the thoughts never ended.

    A server with a reasoning parser has taken them away already. Without one, a text that was cut off before any
    `</think>` was cut off in its thoughts: an answer must not be found in them.
    """
    if "</think>" in said:
        return said.rpartition("</think>")[2]
    if not thoughts and ("<think>" in said or finish == "length"):
        return ""
    return said
