"""The ledger's problems: solved by hand, from the words of the prompt and by the rules of its page."""

import numpy as np
import pytest

from eval.reasoner import ledger
from eval.reasoner.ledger import Level
from eval.reasoner.words import END_THINK, EOS, answer_of, first_wrong, problems

LEVELS = [Level(4, 8, 1), Level(4, 8, 3, True), Level(8, 16, 2), Level(16, 56, 3), *ledger.LADDER.values()]


def solve(prompt: list[str]) -> list[str]:
    """From the words of a prompt, by the rules as a person would follow them."""
    facts, lines, late = int(prompt[1][2:-1]), int(prompt[2][2:-1]), prompt[3] == "<late>"
    given = dict(zip(prompt[4:-1:2], prompt[5:-1:2], strict=True))
    number, out, first, last = 0, [], [], []
    for letter in sorted({key[0] for key in given}):
        ledger = {}
        for i in range(facts):
            number = (number + int(given[f"{letter}{i}"])) % 10
            ledger[i] = number
            out += [f"{letter}{i}", str(number)]
        first = first or [ledger[i] for i in range(3)]
        for line in range(lines):
            number = (number + ledger[line % facts]) % 10
            out += [f"n{lines - 1 - line}", f"{letter.lower()}{line % facts}", str(number)]
            last = [*last, number][-3:]
    return [*out, "</think>", *map(str, first if late else last), "<eos>"]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_every_problem_is_solved_correctly(level):
    for row in ledger.draw(level, 5, np.random.default_rng(3)):
        words = ledger.WORDS.decode(row.tolist()).split()
        prompt, solution = words[: level.prompt_tokens], words[level.prompt_tokens :]
        assert prompt[0] == "<bos>"
        assert prompt[-1] == "<think>"
        assert solution == solve(prompt)
        assert len(solution) == level.thought_tokens + 5


def test_problems_are_the_same_on_every_machine():
    first, again = (problems(ledger, Level(8, 16, 2), 3, seed=7) for _ in range(2))
    assert first == again
    assert first != problems(ledger, Level(8, 16, 2), 3, seed=8)
    assert problems(ledger, Level(8, 16, 2), 5, seed=7)[:3] == first  # however many are asked for
    assert first[0].prompt == ledger.WORDS.encode("<bos> " + first[0].message(ledger.WORDS) + " <think>")
    assert ledger.draw(Level(4, 8, 1), 1, np.random.default_rng(0)).tolist()[0][:9] == ledger.WORDS.encode(
        "<bos> <K4> <N8> <last> A0 +8 A1 +6 A2"
    )


def test_a_problem_is_judged_by_its_own_solution():
    problem = problems(ledger, Level(4, 8, 1), 1, seed=0)[0]
    solution = [*problem.thoughts, END_THINK, *problem.answer, EOS]
    assert answer_of(solution) == problem.answer
    assert first_wrong(problem, solution) is None
    assert answer_of(problem.thoughts) is None
    assert first_wrong(problem, problem.thoughts) == len(problem.thoughts)
    altered = list(solution)
    altered[5] = EOS
    assert first_wrong(problem, altered) == 5
    assert answer_of([END_THINK, 20, 21]) == [20, 21]


@pytest.mark.parametrize(
    ("given", "named"),
    [(dict(facts=5), "facts must be one of"), (dict(lines=9), "lines must be one of"), (dict(phases=4), "phases")],
)
def test_a_level_that_the_vocabulary_has_no_words_for_is_refused(given, named):
    with pytest.raises(ValueError, match=named):
        Level(**given)
