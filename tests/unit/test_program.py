"""The program's problems: run by hand, from the words of the prompt and by the rules of its page."""

import numpy as np
import pytest

from eval.reasoner import program
from eval.reasoner.program import Level
from eval.reasoner.words import Problem, first_wrong, problems

LEVELS = {"small": Level(4), "narrow": Level(20, depth=2), **program.LADDER}


def run(prompt: list[str]) -> list[str]:
    """From the words of a prompt, as a person would follow them."""
    words, out, total = prompt[1:-1], [], 0
    running: list[tuple[str, int]] = []
    while words:
        out.append(words.pop(0))
        word = words.pop(0)
        out.append(word)
        if word == "return":
            left, _ = running.pop()
            out += [f"r{left}", f"_f{running[-1][0]}"]
        else:
            caller, before = running[-1] if running else ("main", 0)
            name = words.pop(0).removeprefix("@f")
            running.append((name, (before + int(word)) % 10))
            out += [f"r{name}", "main" if caller == "main" else f"_f{caller}", str(before), f"f{name}"]
        total = (total + running[-1][1]) % 10
        out += [str(running[-1][1]), str(total)]
    return [*out, "</think>", *out[-3:], "<eos>"]


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_every_problem_is_solved_correctly(level):
    for row in program.draw(level, 5, np.random.default_rng(3)):
        words = program.WORDS.decode(row.tolist()).split()
        prompt, solution = words[: level.prompt_tokens], words[level.prompt_tokens :]
        assert (prompt[0], prompt[-1]) == ("<bos>", "<think>")
        assert solution == run(prompt)
        assert len(solution) == level.thought_tokens + 5


def depths(level: Level) -> list[int]:
    """Functions open after each line."""
    prompt = program.WORDS.decode(problems(program, level, 1, seed=4)[0].prompt).split()
    steps = [-1 if word == "return" else 1 for word in prompt if word == "return" or word[0] == "@"]
    return np.cumsum(steps).tolist()


def test_shapes_ask_for_what_they_say():
    assert depths(Level(5, "once")) == [1, 2, 3, 2, 3, 2, 3, 2, 1]
    assert depths(Level(4, "flat")) == [1, 2, 1, 2, 1, 2, 1]
    walk = depths(Level(30, "walk", depth=7))
    assert (walk[0], walk[-1], max(walk)) == (1, 1, 7)
    assert min(walk[:-1]) >= 1
    assert depths(Level(5, depth=5, calling=1.0)) == [1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert depths(Level(4, depth=4, calling=0.0)) == depths(Level(4, "flat"))


def test_a_drill_follows_no_stack():
    """Each line is right by what was called from where; who calls and who returns is not the innermost."""
    innermost = [0, 0]
    for row in program.draw(Level(12, "drill", depth=12, calling=0.8), 20, np.random.default_rng(3)):
        words = program.WORDS.decode(row.tolist()).split()
        prompt, thoughts = words[: words.index("<think>") + 1], words[words.index("<think>") + 1 :]
        numbers, callers, opened, total = {}, {}, [], 0
        for line in range(23):
            at = [*prompt[1:-1], *thoughts].index(f"p{line}")
            if prompt[at + 2] == "return":
                _, _, left, caller, number, said = (thoughts.pop(0) for _ in range(6))
                assert caller == callers[left[1:]]
                innermost[1] += left[1:] == opened[-1]
                opened.remove(left[1:])
            else:
                _, more, frame, caller, before, name, number, said = (thoughts.pop(0) for _ in range(8))
                assert frame[1:] == name[1:]
                assert f"@{name}" == prompt[at + 3]
                assert (int(before) + int(more)) % 10 == int(number)
                assert before == numbers.get(caller, "0")
                innermost[0] += bool(opened) and caller[2:] == opened[-1]
                callers[name[1:]], numbers[f"_{name}"] = caller, number
                opened.append(name[1:])
            total = (total + int(number)) % 10
            assert said == str(total)
        assert thoughts[0] == "</think>"
    assert 20 < innermost[0] < 110
    assert 20 < innermost[1] < 110


def test_problems_are_the_same_on_every_machine():
    assert problems(program, Level(8), 3, seed=7) == problems(program, Level(8), 5, seed=7)[:3]
    assert problems(program, Level(8), 3, seed=7) != problems(program, Level(8), 3, seed=8)
    first = program.WORDS.decode(problems(program, Level(3), 1, seed=0)[0].prompt)
    assert first == "<bos> p0 +5 @f2 p1 +6 @f11 p2 return p3 +2 @f25 p4 return <think>"


def test_a_problem_is_judged_by_its_own_solution():
    problem = problems(program, Level(4), 1, seed=0)[0]
    assert isinstance(problem, Problem)
    assert problem.answer == problem.thoughts[-3:]
    assert first_wrong(problem, [*problem.thoughts[:-1], program.NUMBER]) in (None, len(problem.thoughts) - 1)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (dict(calls=2), "calls must be 3 to 30"),
        (dict(shape="round"), "shape must be one of"),
        (dict(depth=1), "depth"),
        (dict(calling=1.1), "calling must be 0 to 1"),
    ],
)
def test_a_level_that_cannot_be_drawn_is_refused(given, named):
    with pytest.raises(ValueError, match=named):
        Level(**given)
