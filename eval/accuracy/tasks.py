"""What can be asked: problems, and how an answer is found in a text and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eval.accuracy.errors import EvalError
from eval.reasoner import task as ledger


@dataclass(frozen=True)
class Problem:
    id: str
    message: str  #: the user's
    expected: Any


@dataclass(frozen=True)
class Task:
    problems: list[Problem]
    #: The answer in what the model said behind its thoughts; None if there is none.
    answer: Callable[[str], str | None]
    right: Callable[[Problem, str], bool]
    #: Sampling that the task is usually measured with; flags override it.
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 32768


def reasoner(level: str, count: int, seed: int) -> Task:
    """The small reasoner's own problems (eval/reasoner), solved greedily: the model was taught one right way.

    Raises EvalError for a level that there is not.
    """
    if level not in ledger.LADDER:
        raise EvalError(f"--task reasoner:LEVEL needs a level of {', '.join(ledger.LADDER)}, got {level!r}")
    found = [
        Problem(f"{level}-{seed}-{number}", problem.message, ledger.decode(problem.answer))
        for number, problem in enumerate(ledger.problems(ledger.LADDER[level], count, seed))
    ]

    def answer(text: str) -> str | None:
        # Without a reasoning parser the thoughts stand before it.
        words = text.rpartition("</think>")[2].replace("<eos>", " ").split()
        return " ".join(words) or None

    return Task(
        found,
        answer,
        lambda problem, said: said == problem.expected,
        temperature=0.0,
        top_p=1.0,
        max_tokens=ledger.LADDER[level].thought_tokens + 64,
    )


def find(name: str, problems: int | None, seed: int) -> Task:
    """The task of `--task`. Raises EvalError if there is none of this name."""
    kind, _, level = name.partition(":")
    if kind == "reasoner":
        return reasoner(level or "far", 300 if problems is None else problems, seed)
    raise EvalError(f"--task must be reasoner:LEVEL, got {name!r}")
