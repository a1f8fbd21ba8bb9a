"""How each family of problems is taught: the network's size, words of one meaning, stages, and what must be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from eval.reasoner import ledger, program
from eval.reasoner.network import Alike, Size
from eval.reasoner.words import END_THINK, Family, Level


class Lesson(Protocol):
    family: Family
    size: Size
    meanings: Sequence[Alike]
    enough: Sequence[float]  #: of each stage, the share of right tokens that ends it, of every kind
    steady: float  #: share of the time before the learning rate falls

    def level(self, stage: int, generator: np.random.Generator) -> Level:
        """A level that the stage draws from."""

    def kinds(self, rows: torch.Tensor, level: Level) -> list[torch.Tensor]:
        """Which tokens after the prompt must be derived, by kind: of [B, tokens], masks [B, tokens - prompt].

        A level may have none of a kind.
        """


@dataclass(frozen=True)
class LedgerStage:
    facts: tuple[int, ...]
    lines: tuple[int, ...]
    phases: tuple[int, ...]
    weights: tuple[float, ...] | None = None  #: of `lines`


@dataclass(frozen=True)
class LedgerLesson:
    family: Family = ledger
    size: Size = field(default_factory=Size)
    meanings: tuple[Alike, ...] = (
        Alike((ledger.KEY, ledger.ASK), len(ledger.LETTERS) * max(ledger.FACTS)),
        Alike((ledger.NUMBER, ledger.INCREMENT), ledger.MOD),
    )
    enough: tuple[float, ...] = (0.9, 0.97, 0.985, 2.0)
    steady: float = 0.4
    stages: tuple[LedgerStage, ...] = (
        LedgerStage((4,), (8,), (1, 2, 3)),
        LedgerStage((4, 8, 16), (8, 16), (1, 2, 3)),
        LedgerStage((4, 8, 16), (16, 32), (2, 3)),
        LedgerStage((4, 8, 16), (8, 32, 56), (3,), (0.1, 0.3, 0.6)),
    )

    def level(self, stage: int, generator: np.random.Generator) -> ledger.Level:
        of = self.stages[stage]
        return ledger.Level(
            facts=int(generator.choice(of.facts)),
            lines=int(generator.choice(of.lines, p=of.weights)),
            phases=int(generator.choice(of.phases)),
            late=bool(generator.random() < 0.3),
        )

    def kinds(self, rows: torch.Tensor, level: Level) -> list[torch.Tensor]:
        """Numbers of the ledgers, of the lines, and of the answer."""
        prompt = level.prompt_tokens
        target, before = rows[:, prompt:], rows[:, prompt - 1 : -1]
        number = _among(target, ledger.NUMBER, ledger.MOD)
        after = (target == END_THINK).cumsum(1) > 0
        entry = (before >= ledger.KEY) & (before < ledger.ASK)
        return [number & entry, number & ~entry & ~after, number & after]


@dataclass(frozen=True)
class ProgramStage:
    calls: tuple[int, ...]
    drills: float  #: share of problems that are drills


@dataclass(frozen=True)
class ProgramLesson:
    family: Family = program
    size: Size = field(
        default_factory=lambda: Size(hidden=144, layers=4, heads=6, kv_heads=3, head_dim=48, back=(1, 2, 3, 4, 5, 7))
    )
    meanings: tuple[Alike, ...] = (Alike((program.NUMBER, program.INCREMENT), program.MOD),)
    enough: tuple[float, ...] = (0.8, 0.85, 0.92, 0.95, 2.0)
    steady: float = 0.2
    #: Without drills no frame is ever looked up: in walks most belong to calls just before, and in deep ones they come
    #: in reverse, line by line.
    stages: tuple[ProgramStage, ...] = (
        ProgramStage((4, 6, 8), 0.6),
        ProgramStage((8, 12, 16), 0.5),
        ProgramStage((12, 16, 20), 0.4),
        ProgramStage((16, 20, 24), 0.25),
        ProgramStage((24, 28, 30), 0.1),
    )
    shapes: Mapping[str, float] = field(default_factory=lambda: {"walk": 0.7, "once": 0.2, "flat": 0.1})
    depths: tuple[int, ...] = (6, 12, 30)
    callings: tuple[float, ...] = (0.55, 0.9)

    def level(self, stage: int, generator: np.random.Generator) -> program.Level:
        of = self.stages[stage]
        drill = generator.random() < of.drills
        return program.Level(
            calls=int(generator.choice(of.calls)),
            shape="drill" if drill else str(generator.choice(list(self.shapes), p=list(self.shapes.values()))),
            depth=int(generator.choice(self.depths)),
            calling=float(generator.choice(self.callings)),
        )

    def kinds(self, rows: torch.Tensor, level: program.Level) -> list[torch.Tensor]:
        """Calls and returns; the frame that a return leaves, its caller, its number; numbers of calls; sums."""
        prompt = level.prompt_tokens
        target, before = rows[:, prompt:], rows[:, prompt - 1 : -1]
        number = _among(target, program.NUMBER, program.MOD)
        left = before == program.RETURN
        return [
            _among(before, program.LINE, 2 * program.FUNCTIONS),
            left & (level.shape != "drill"),  # where chance says which
            _after(left),
            _after(_after(left)),
            number & _among(before, program.CALLED, program.FUNCTIONS),
            number & _after(number),
        ]


LESSONS: Mapping[str, Lesson] = {"ledger": LedgerLesson(), "program": ProgramLesson()}


def _among(tokens: torch.Tensor, first: int, count: int) -> torch.Tensor:
    return (tokens >= first) & (tokens < first + count)


def _after(mask: torch.Tensor) -> torch.Tensor:
    """Tokens whose left neighbour the mask has."""
    shifted = torch.zeros_like(mask)
    shifted[:, 1:] = mask[:, :-1]
    return shifted
