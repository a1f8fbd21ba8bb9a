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
`phases` (ledgers that go stale), `late` (facts that nothing asks for until the end). The answer to `late` can be had
from the prompt, whose first increments it sums up. So no level of the ladder asks for it: program.py's `once` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eval.reasoner.words import FRAME, Vocabulary

MOD = 10
FACTS = (4, 8, 16)
LINES = (8, 16, 32, 56)
PHASES = 3
LETTERS = "ABC"
ASKED = 3  #: numbers in an answer

WORDS = Vocabulary(
    (
        *FRAME,
        "<last>",
        "<late>",
        *(f"<K{k}>" for k in FACTS),
        *(f"<N{n}>" for n in LINES),
        *(f"+{d}" for d in range(MOD)),
        *(f"{d}" for d in range(MOD)),
        *(f"{letter}{i}" for letter in LETTERS for i in range(max(FACTS))),
        *(f"{letter.lower()}{i}" for letter in LETTERS for i in range(max(FACTS))),
        *(f"n{i}" for i in range(max(LINES))),
    )
)
INCREMENT, NUMBER, KEY, ASK, COUNT = (WORDS[t] for t in ("+0", "0", "A0", "a0", "n0"))


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
}


def draw(level: Level, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` problems with their solutions: int64 [count, tokens], prompt first (`level.prompt_tokens`)."""
    k, phases = level.facts, level.phases
    increments = generator.integers(0, MOD, (phases, count, k))

    def column(token: str) -> np.ndarray:
        return np.full((count, 1), WORDS[token])

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
    parts.append(column("<think>"))
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
    parts += [column("</think>"), NUMBER + answer, column("<eos>")]
    return np.concatenate(parts, 1)
