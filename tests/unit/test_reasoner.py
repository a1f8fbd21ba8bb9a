"""The ledger's problems: solved by hand, from the words of the prompt and by the rules of its page."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.reasoner import task, train
from eval.reasoner.muon import orthogonal
from eval.reasoner.task import Level

MODEL = Path(train.__file__).parent / "model"
LEVELS = [Level(4, 8, 1), Level(4, 8, 3, True), Level(8, 16, 2), Level(16, 56, 3), *task.LADDER.values()]


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
    for row in task.draw(level, 5, np.random.default_rng(3)):
        words = task.decode(row.tolist()).split()
        prompt, solution = words[: level.prompt_tokens], words[level.prompt_tokens :]
        assert prompt[0] == "<bos>"
        assert prompt[-1] == "<think>"
        assert solution == solve(prompt)
        assert len(solution) == level.thought_tokens + 5


def test_problems_are_the_same_on_every_machine():
    first, again = (task.problems(Level(8, 16, 2), 3, seed=7) for _ in range(2))
    assert first == again
    assert first != task.problems(Level(8, 16, 2), 3, seed=8)
    assert task.problems(Level(8, 16, 2), 5, seed=7)[:3] == first  # however many are asked for
    assert first[0].prompt == task.encode("<bos> " + first[0].message + " <think>")
    assert task.draw(Level(4, 8, 1), 1, np.random.default_rng(0)).tolist()[0][:9] == task.encode(
        "<bos> <K4> <N8> <last> A0 +8 A1 +6 A2"
    )


def test_a_problem_is_judged_by_its_own_solution():
    problem = task.problems(Level(4, 8, 1), 1, seed=0)[0]
    solution = [*problem.thoughts, task.END_THINK, *problem.answer, task.EOS]
    assert task.answer_of(solution) == problem.answer
    assert task.first_wrong(problem, solution) is None
    assert task.answer_of(problem.thoughts) is None
    assert task.first_wrong(problem, problem.thoughts) == len(problem.thoughts)
    altered = list(solution)
    altered[5] = task.EOS
    assert task.first_wrong(problem, altered) == 5
    assert task.answer_of([task.END_THINK, 20, 21]) == [20, 21]


@pytest.mark.parametrize(
    ("given", "named"),
    [(dict(facts=5), "facts must be one of"), (dict(lines=9), "lines must be one of"), (dict(phases=4), "phases")],
)
def test_a_level_that_the_vocabulary_has_no_words_for_is_refused(given, named):
    with pytest.raises(ValueError, match=named):
        Level(**given)


def test_heads_attend_back_from_the_first_step():
    """Layer 0, head 0 to 2 of an untrained model, on any text: most attention 1, 2, 3 tokens back."""
    torch.manual_seed(0)
    model = train.build(train.Size())
    model.set_attn_implementation("eager")
    attended = model(torch.randint(8, len(task.VOCABULARY), (2, 200)), output_attentions=True).attentions[0]
    for head, back in enumerate((1, 2, 3)):
        assert attended[:, head].diagonal(-back, 1, 2)[:, 5:].mean() > 0.5


def test_an_update_has_equal_singular_values():
    updates = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(1))
    for update in orthogonal(updates):
        values = torch.linalg.svdvals(update)
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_a_trained_model_is_counted_exact_only_if_every_token_is():
    class Perfect(torch.nn.Module):
        """Knows one wrong number, at a place that `wrong_in` problems have."""

        def __init__(self, wrong_in: int):
            super().__init__()
            self.wrong_in = wrong_in

        def forward(self, input_ids):
            logits = torch.nn.functional.one_hot(torch.roll(input_ids, -1, 1), len(task.VOCABULARY)).float()
            logits[:, -1, task.EOS] = 2.0
            logits[: self.wrong_in, 40] = 0.0
            return type("Output", (), {"logits": logits})

    level = Level(4, 8, 1)
    assert train.exact(Perfect(0), level, 10, 1, "cpu") == 1.0
    assert train.exact(Perfect(3), level, 10, 1, "cpu") == 0.7


@pytest.mark.parametrize("level", task.LADDER.values(), ids=task.LADDER)
def test_the_model_in_the_repository_solves_its_problems(level):
    """Token for token, with its full KV: what is lost under compression is lost to compression."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    assert train.exact(model, level, 24, seed=77, device="cpu") >= 0.95


def test_its_tokenizer_takes_a_problem_as_it_is():
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    problem = task.problems(Level(8, 56), 1, seed=1)[0]
    text = tokenizer.apply_chat_template([{"role": "user", "content": problem.message}], tokenize=False)
    assert tokenizer(text)["input_ids"] == problem.prompt
    assert task.encode(tokenizer.decode(problem.thoughts)) == problem.thoughts
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 10 * 2**20
