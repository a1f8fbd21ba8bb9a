"""What the made-up tasks share: a vocabulary in which a word is a token, a problem, and how an output is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

#: The first words of every vocabulary.
FRAME = ("<pad>", "<bos>", "<eos>", "<think>", "</think>")
PAD, BOS, EOS, THINK, END_THINK = range(len(FRAME))


@dataclass(frozen=True)
class Vocabulary:
    words: tuple[str, ...]  #: FRAME first

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, word: str) -> int:
        return self.ids[word]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i] for i in ids)

    def encode(self, text: str) -> list[int]:
        """Raises ValueError on a word that is not of the vocabulary."""
        unknown = [word for word in text.split() if word not in self.ids]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not a token of this vocabulary")
        return [self.ids[word] for word in text.split()]


@dataclass(frozen=True)
class Problem:
    """Token ids of one problem and of its only right solution."""

    prompt: list[int]
    thoughts: list[int]
    answer: list[int]

    @classmethod
    def of_row(cls, row: Sequence[int], prompt_tokens: int, thought_tokens: int) -> Problem:
        """Of a row as `draw` makes it: prompt, thoughts, </think>, answer, <eos>."""
        end = prompt_tokens + thought_tokens
        return cls(list(row[:prompt_tokens]), list(row[prompt_tokens:end]), list(row[end + 1 : -1]))

    def message(self, vocabulary: Vocabulary) -> str:
        """What a user sends; the chat template puts <bos> before and <think> after it."""
        return vocabulary.decode(self.prompt[1:-1])


class Level(Protocol):
    """How difficult a task's problems are."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def thought_tokens(self) -> int: ...


class Draw(Protocol):
    """Draws `count` problems with their solutions: int64 [count, tokens], prompt first."""

    def __call__(self, level: Level, count: int, generator: np.random.Generator) -> np.ndarray: ...


class Family(Protocol):
    """A module of made-up problems."""

    WORDS: Vocabulary
    LADDER: Mapping[str, Level]
    draw: Draw


def problems(family: Family, level: Level, count: int, seed: int) -> list[Problem]:
    """The same ones for the same arguments, on every machine; the first of many are those of few."""
    rows = [family.draw(level, 1, np.random.default_rng([seed, number]))[0].tolist() for number in range(count)]
    return [Problem.of_row(row, level.prompt_tokens, level.thought_tokens) for row in rows]


def answer_of(output: Sequence[int]) -> list[int] | None:
    """What stands after the thoughts, up to the end; None if the thoughts do not end."""
    output = list(output)
    if END_THINK not in output:
        return None
    answer = output[output.index(END_THINK) + 1 :]
    return answer[: answer.index(EOS)] if EOS in answer else answer


def first_wrong(problem: Problem, output: Sequence[int]) -> int | None:
    """Position in the thoughts of the first token that is not the right one; None if all are right."""
    right = [*problem.thoughts, END_THINK]
    return next((i for i, token in enumerate(right) if i >= len(output) or output[i] != token), None)
