"""What was written down before a run: `registered.json` in each results folder that it is about.

It holds what each folder will measure, which arms will be compared there, by which test, and what counts as success.
One registration may cover several folders; all of them carry the whole of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.accuracy.errors import EvalError
from eval.compare import options, written
from eval.compare.arms import Arm

NAME = "registered.json"
TEST = (
    "two-sided exact sign-flip test of the paired differences in right samples, problem by problem "
    "(of one sample a problem: McNemar's exact test)"
)
CORRECTION = "Holm, over all comparisons of all folders"
#: What an expectation of a comparison says.
EXPECTATIONS = {
    "better": "the first is right more often, and the adjusted p is below the level",
    "not worse": "the first is right less often by at most 1.96 standard errors of the difference, if at all",
}


@dataclass(frozen=True)
class Comparison:
    folder: str
    first: str  #: an arm
    second: str
    expect: str  #: of the first; one of EXPECTATIONS

    def met(self, difference: float, error: float, adjusted: float, level: float) -> bool:
        """Whether a difference in accuracy with this standard error and adjusted p is what was expected."""
        if self.expect == "better":
            return difference > 0 and adjusted < level
        return difference >= -1.96 * error


@dataclass(frozen=True)
class Goal:
    """The accuracy that one arm should have."""

    folder: str
    arm: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, accuracy: float) -> bool:
        return (self.at_least is None or accuracy >= self.at_least) and (
            self.at_most is None or accuracy <= self.at_most
        )

    def __str__(self) -> str:
        bounds = [("at least", self.at_least), ("at most", self.at_most)]
        return " and ".join(f"{words} {100 * value:g} %" for words, value in bounds if value is not None)


@dataclass(frozen=True)
class Registration:
    question: str
    date: str
    commit: str
    level: float
    folders: Mapping[str, Mapping[str, Any]]  #: by name: what `options.described` says of its command line
    comparisons: Sequence[Comparison]
    goals: Sequence[Goal]

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "date": self.date,
            "commit": self.commit,
            "test": TEST,
            "correction": CORRECTION,
            "level": self.level,
            "success": EXPECTATIONS,
            "folders": dict(self.folders),
            "comparisons": [vars(comparison) for comparison in self.comparisons],
            "goals": [vars(goal) for goal in self.goals],
        }


def read(folder: Path) -> Registration | None:
    """None without one. Raises EvalError if it can't be read."""
    if not (folder / NAME).exists():
        return None
    try:
        found = written.said(folder, NAME)
        return Registration(
            question=found["question"],
            date=found["date"],
            commit=found["commit"],
            level=float(found["level"]),
            folders=found["folders"],
            comparisons=[Comparison(**each) for each in found["comparisons"]],
            goals=[Goal(**each) for each in found["goals"]],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{folder / NAME} is no registration: {type(error).__name__}: {error}") from error


def wanted_in(folder: Path) -> Mapping[str, Any] | None:
    """What a folder is registered for, as `options.described` says it; None without a registration.

    Raises EvalError if its registration can't be read, or is of other folders.
    """
    registered = read(folder)
    if registered is None:
        return None
    name = folder.resolve().name
    if name not in registered.folders:
        raise EvalError(f"{folder / NAME} registers {', '.join(registered.folders)} and not {name}; rename it back")
    return registered.folders[name]


def check(asked: argparse.Namespace) -> None:
    """Raises EvalError if the folder is registered for something else than this command line measures."""
    wanted = wanted_in(asked.out)
    if wanted is None:
        return
    now = options.described(asked)
    different = [part for part in now if wanted.get(part) != now[part]]
    if different:
        part = different[0]
        raise EvalError(
            f"{asked.out} is registered for another comparison: {part} is {wanted.get(part)!r} there and {now[part]!r} "
            "here; measure what was registered, or choose another --out"
        )


def pairs(
    folder: str, arms: Sequence[Arm], first: str, second: str, expect: str, only: Mapping[str, Any]
) -> list[Comparison]:
    """One comparison for each setting of `only` (ratios, min_kept) at which both policies, by label, have an arm."""
    of = {policy: {_setting(arm): arm for arm in matching(arms, policy, only)} for policy in (first, second)}
    return [
        Comparison(folder, arm.name, of[second][setting].name, expect)
        for setting, arm in of[first].items()
        if setting in of[second]
    ]


def matching(arms: Sequence[Arm], policy: str, only: Mapping[str, Any]) -> list[Arm]:
    """A policy's arms at the ratios and floors named, all where none is."""
    return [
        arm
        for arm in arms
        if arm.label == policy
        and arm.ratio in only.get("ratios", [arm.ratio])
        and arm.min_kept in only.get("min_kept", [arm.min_kept])
    ]


def _setting(arm: Arm) -> tuple[int, float, int]:
    return (arm.interval, arm.ratio, arm.min_kept)
