"""The ledger: problems whose solution needs facts that stand nowhere but in the thoughts.

    prompt   <bos> <K8> <N56> <last> ( A0 +3 A1 +7 ... A7 +1 ) ( B0 +2 ... ) ( C0 ... ) <think>
    thoughts A0 3 A1 0 ... A7 4               a ledger: running sums of the increments, from the number before it
             n55 a0 7 n54 a1 7 ... n0 a7 2    lines: count, key, the number before plus what the ledger says of the key
             B0 4 ...  n55 b0 ...             the next phase: another ledger, and the old one is stale
    answer   </think> 2 1 9 <eos>             `<last>`: the last three numbers; `<late>`: the first three of ledger A

All numbers are mod 10. A ledger's entries are derived once, in the thoughts, and each line looks one up: the prompt has
increments only, and a line shows a sum, not the entry. So whoever forgets an entry that is still needed goes wrong at
the next line that needs it, and every number after that is wrong too.

Difficulty has four independent dials: `facts` (K, entries a ledger), `lines` (N: how far back the ledger lies),
`phases` (ledgers that go stale), `late` (facts that nothing asks for until the end).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOD = 10
FACTS = (4, 8, 16)
LINES = (8, 16, 32, 56)
PHASES = 3
LETTERS = "ABC"
ASKED = 3  #: numbers in an answer

SPECIAL = ("<pad>", "<bos>", "<eos>", "<think>", "</think>", "<last>", "<late>")
VOCABULARY: tuple[str, ...] = (
    *SPECIAL,
    *(f"<K{k}>" for k in FACTS),
    *(f"<N{n}>" for n in LINES),
    *(f"+{d}" for d in range(MOD)),
    *(f"{d}" for d in range(MOD)),
    *(f"{letter}{i}" for letter in LETTERS for i in range(max(FACTS))),
    *(f"{letter.lower()}{i}" for letter in LETTERS for i in range(max(FACTS))),
    *(f"n{i}" for i in range(max(LINES))),
)
ID = {token: index for index, token in enumerate(VOCABULARY)}
PAD, BOS, EOS, THINK, END_THINK = (ID[t] for t in ("<pad>", "<bos>", "<eos>", "<think>", "</think>"))
INCREMENT, NUMBER, KEY, ASK, COUNT = (ID[t] for t in ("+0", "0", "A0", "a0", "n0"))


@dataclass(frozen=True)
class Level:
    """How difficult: see above. Tokens of a whole trace: phases * (2 * facts + 3 * lines) + the answer."""

    facts: int = 8
    lines: int = 56
    phases: int = PHASES
    late: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (("facts", self.facts, FACTS), ("lines", self.lines, LINES)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value}")
        if not 1 <= self.phases <= PHASES:
            raise ValueError(f"phases must be 1 to {PHASES}, got {self.phases}")

    @property
    def prompt_tokens(self) -> int:
        return 5 + 2 * self.facts * self.phases

    @property
    def thought_tokens(self) -> int:
        return self.phases * (2 * self.facts + 3 * self.lines)

    @property
    def name(self) -> str:
        return f"K{self.facts}-N{self.lines}-p{self.phases}{'-late' if self.late else ''}"


#: From what a window of 32 sees twice over to what nothing but all of the thoughts can answer.
LADDER = {
    "near": Level(facts=4, lines=56),
    "far": Level(facts=8, lines=56),
    "many": Level(facts=16, lines=56),
    "late": Level(facts=8, lines=56, late=True),
}


def draw(level: Level, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` problems with their solutions: int64 [count, tokens], prompt first (`level.prompt_tokens`)."""
    k, phases = level.facts, level.phases
    increments = generator.integers(0, MOD, (phases, count, k))

    def column(token: str | int) -> np.ndarray:
        return np.full((count, 1), ID[token] if isinstance(token, str) else token)

    def pairs(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.stack([np.broadcast_to(left, right.shape), right], 2).reshape(count, -1)

    keys = np.arange(k)
    parts = [
        column("<bos>"),
        column(f"<K{k}>"),
        column(f"<N{level.lines}>"),
        column("<late>" if level.late else "<last>"),
    ]
    parts += [pairs(KEY + max(FACTS) * p + keys, INCREMENT + increments[p]) for p in range(phases)]
    parts.append(column(THINK))
    number, ledgers, said = np.zeros(count, np.int64), [], np.empty((count, 0), np.int64)
    for p in range(phases):
        ledger = (number[:, None] + np.cumsum(increments[p], 1)) % MOD
        ledgers.append(ledger)
        asked = np.arange(level.lines) % k
        numbers = (ledger[:, -1:] + np.cumsum(ledger[:, asked], 1)) % MOD
        lines = np.stack(
            [
                np.broadcast_to(COUNT + np.arange(level.lines)[::-1], numbers.shape),
                np.broadcast_to(ASK + max(FACTS) * p + asked, numbers.shape),
                NUMBER + numbers,
            ],
            2,
        ).reshape(count, -1)
        parts += [pairs(KEY + max(FACTS) * p + keys, NUMBER + ledger), lines]
        number, said = numbers[:, -1], numbers
    answer = ledgers[0][:, :ASKED] if level.late else said[:, -ASKED:]
    parts += [column(END_THINK), NUMBER + answer, column(EOS)]
    return np.concatenate(parts, 1)


@dataclass(frozen=True)
class Problem:
    prompt: list[int]
    thoughts: list[int]  #: the right ones
    answer: list[int]

    @property
    def message(self) -> str:
        """What a user sends; the chat template puts <bos> before and <think> behind it."""
        return decode(self.prompt[1:-1])


def problems(level: Level, count: int, seed: int) -> list[Problem]:
    """The same ones for the same arguments, on every machine; the first of many are those of few."""
    rows = [draw(level, 1, np.random.default_rng([seed, number]))[0].tolist() for number in range(count)]
    start, end = level.prompt_tokens, level.prompt_tokens + level.thought_tokens
    return [Problem(row[:start], row[start:end], row[end + 1 : -1]) for row in rows]


def decode(ids: Sequence[int]) -> str:
    return " ".join(VOCABULARY[i] for i in ids)


def encode(text: str) -> list[int]:
    """Raises ValueError on a word that is not of the vocabulary."""
    unknown = [word for word in text.split() if word not in ID]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a token of the ledger's vocabulary")
    return [ID[word] for word in text.split()]


def answer_of(output: Sequence[int]) -> list[int] | None:
    """What stands behind the thoughts, up to the end; None if the thoughts do not end."""
    output = list(output)
    if END_THINK not in output:
        return None
    answer = output[output.index(END_THINK) + 1 :]
    return answer[: answer.index(EOS)] if EOS in answer else answer


def first_wrong(problem: Problem, output: Sequence[int]) -> int | None:
    """Position in the thoughts of the first token that is not the right one; None if all are right."""
    right = [*problem.thoughts, END_THINK]
    return next((i for i, token in enumerate(right) if i >= len(output) or output[i] != token), None)
