"""A small program with calls: problems whose solution needs a stack that stands nowhere but in the thoughts.

    prompt   <bos> p0 +3 @f7 p1 +9 @f2 p2 return p3 +1 @f5 ... <think>     a call adds to the caller's number
    thoughts p0 +3 r7 main 0 f7 3 3     a call: line, what it adds, its frame, function, its number, sum of numbers
             p1 +9 r2 _f7 3 f2 2 5      the frame r2: who called f2, and the caller's number
             p2 return r2 _f7 3 8       a return: line, the frame that is left, who goes on, its number, the sum
             p3 +1 r5 _f7 3 f5 4 2 ...
    answer   </think> _f7 3 1 <eos>     the last line: where it ended, the number, the sum

All numbers are mod 10. A return must look up the frame of the function that ends. It stands where that function was
called: a line back, or the whole trace. Nothing asks for it in between, as the ledger's lines do; a caller's number is
said again with each call and return of its own. The sum carries each wrong number on.

Difficulty has four dials: `calls`, `shape`, and of `walk` the most functions open at once (`depth`) and how often it
goes deeper where it could return too (`calling`):

walk   calls and returns at random: most facts are needed soon, few after long
once   two functions, then calls that return at once, then back through the two: facts said once, asked for at the end
flat   one function, then calls that return at once: all that is needed stands in the last lines
drill  to learn by alone: as a walk, but any open function calls, and any returns. What is drawn so cannot be guessed
       from its place, so the frames must be looked up
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.reasoner.words import BOS, END_THINK, EOS, FRAME, THINK, Vocabulary

MOD = 10
FUNCTIONS = 30
SHAPES = ("walk", "once", "flat", "drill")

WORDS = Vocabulary(
    (
        *FRAME,
        "return",
        "main",
        *(f"+{d}" for d in range(MOD)),
        *(f"{d}" for d in range(MOD)),
        *(f"@f{i}" for i in range(FUNCTIONS)),
        *(f"r{i}" for i in range(FUNCTIONS)),
        *(f"f{i}" for i in range(FUNCTIONS)),
        *(f"_f{i}" for i in range(FUNCTIONS)),
        *(f"p{i}" for i in range(2 * FUNCTIONS)),
    )
)
RETURN, MAIN, INCREMENT, NUMBER, DEFINED, LEFT, CALLED, CALLER, LINE = (
    WORDS[word] for word in ("return", "main", "+0", "0", "@f0", "r0", "f0", "_f0", "p0")
)


@dataclass(frozen=True)
class Level:
    """How difficult: see above. A program of n calls has n - 1 returns: it ends in the function that began it."""

    calls: int = 28  #: the last lines of programs of 30 are too rarely calls to be learned
    shape: str = "walk"
    depth: int = 12
    calling: float = 0.55  #: how often a walk goes deeper where it could return too

    def __post_init__(self) -> None:
        if not 3 <= self.calls <= FUNCTIONS:
            raise ValueError(f"calls must be 3 to {FUNCTIONS}, got {self.calls}")
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        if self.depth < 2:
            raise ValueError(f"depth must be 2 or more, got {self.depth}")
        if not 0 <= self.calling <= 1:
            raise ValueError(f"calling must be 0 to 1, got {self.calling}")

    @property
    def prompt_tokens(self) -> int:
        return 5 * self.calls

    @property
    def thought_tokens(self) -> int:
        return 14 * self.calls - 6


LADDER = {
    "deep": Level(),
    "once": Level(shape="once"),
    "flat": Level(shape="flat"),
}


def draw(level: Level, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` problems with their solutions: int64 [count, tokens], prompt first (`level.prompt_tokens`)."""
    rows = []
    for _ in range(count):
        lines = _lines(level, generator)
        functions = generator.permutation(FUNCTIONS)[: level.calls].tolist()
        increments = generator.integers(0, MOD, level.calls).tolist()
        rows.append(_run(lines, functions, increments, generator if level.shape == "drill" else None))
    return np.array(rows)


def _lines(level: Level, generator: np.random.Generator) -> list[bool]:
    """Of a program: whether each line is a call, or a return."""
    if level.shape == "once":
        return [True, True, *[True, False] * (level.calls - 2), False]
    if level.shape == "flat":
        return [True, *[True, False] * (level.calls - 1)]
    lines, depth, left = [True], 1, level.calls - 1
    while left or depth > 1:
        can_call, can_return = left > 0 and depth < level.depth, depth > 1
        call = can_call and (not can_return or generator.random() < level.calling)
        lines.append(call)
        depth += 1 if call else -1
        left -= call
    return lines


def _run(
    lines: list[bool], functions: list[int], increments: list[int], drill: np.random.Generator | None
) -> list[int]:
    prompt, thoughts = [BOS], []
    numbers: dict[int, int] = {}
    callers: dict[int, int] = {}
    stack: list[int] = []
    total, coming = 0, iter(zip(functions, increments, strict=True))
    for number, call in enumerate(lines):
        if call:
            function, increment = next(coming)
            prompt += [LINE + number, INCREMENT + increment, DEFINED + function]
            frame, before = [MAIN, NUMBER], 0
            if stack:
                caller = stack[drill.integers(len(stack)) if drill else -1]
                callers[function], before = caller, numbers[caller]
                frame = [CALLER + caller, NUMBER + before]
            numbers[function] = (before + increment) % MOD
            thoughts += [LINE + number, INCREMENT + increment, LEFT + function, *frame, CALLED + function]
            stack.append(function)
            current = function
        else:
            left = stack.pop(drill.integers(1, len(stack)) if drill else -1)
            current = callers[left]
            prompt += [LINE + number, RETURN]
            thoughts += [LINE + number, RETURN, LEFT + left, CALLER + current]
        total = (total + numbers[current]) % MOD
        thoughts += [NUMBER + numbers[current], NUMBER + total]
    return [*prompt, THINK, *thoughts, END_THINK, *thoughts[-3:], EOS]
