"""What trains the small reasoners, and the models that it made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.reasoner import ledger, network, program, train
from eval.reasoner.lessons import LESSONS
from eval.reasoner.muon import orthogonal
from eval.reasoner.words import EOS, problems

HERE = Path(train.__file__).parent
MODELS = {"model": ledger, "program-model": program, "window-model": ledger}
TRAINED = [(directory, family, name) for directory, family in MODELS.items() for name in family.LADDER]


@pytest.mark.parametrize("task", LESSONS)
@pytest.mark.parametrize("stage", [0, -1], ids=["first stage", "last stage"])
def test_every_kind_of_token_that_is_learned_is_there(task, stage):
    """Or its share of right ones would not be a number, and the stage would never end."""
    lesson, generator = LESSONS[task], np.random.default_rng(5)
    met, derived = 0, set()
    for _ in range(20):
        rows, level = train.batch(lesson, range(len(lesson.enough))[stage], 600, generator)
        kinds = torch.stack(lesson.kinds(rows, level))
        assert (kinds.sum(0) <= 1).all()
        words = [lesson.family.WORDS.words[i] for i in rows[:, level.prompt_tokens :][kinds.any(0)].unique()]
        derived |= {word.rstrip("0123456789") for word in words}
        met = met + kinds.flatten(1).any(1).int()
    assert (met > 3).all()
    assert derived == ({"+", "return", "r", "_f", ""} if task == "program" else {""})


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("lesson", LESSONS.values(), ids=LESSONS)
def test_heads_attend_back_from_the_first_step(lesson, window):
    """Layer 0 of an untrained model, on any text: most attention 1, 2, 3 tokens back, a head each."""
    torch.manual_seed(0)
    model = network.build(lesson.size, len(lesson.family.WORDS), lesson.meanings, window)
    model.set_attn_implementation("eager")
    attended = model(torch.randint(8, len(lesson.family.WORDS), (2, 200)), output_attentions=True).attentions[0]
    for head, back in enumerate(lesson.size.back):
        assert attended[:, head].diagonal(-back, 1, 2)[:, 5:].mean() > 0.5


def test_every_other_layer_sees_a_window_and_the_rest_is_alike():
    """Window layers see 16 tokens, their own included; logits and what branches add begin as without windows."""
    size, tokens = LESSONS["ledger"].size, torch.randint(8, len(ledger.WORDS), (2, 100))
    said = []
    for window in (None, 16):
        torch.manual_seed(0)
        model = network.build(size, len(ledger.WORDS), LESSONS["ledger"].meanings, window)
        model.set_attn_implementation("eager")
        said.append(model(tokens, output_attentions=True, output_hidden_states=True))
    full, windowed = said
    seen = [(attention > 0).sum(-1).max().item() for attention in windowed.attentions]
    assert seen == [16, 100, 16]
    ratio = windowed.hidden_states[0].std() / full.hidden_states[0].std()
    assert abs(ratio - size.hidden**0.5) < 0.5
    grown = windowed.hidden_states[1].std() / ratio / full.hidden_states[1].std()
    assert 0.5 < grown < 2
    assert 0.5 < windowed.logits.std() / full.logits.std() < 2


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
            logits = torch.nn.functional.one_hot(torch.roll(input_ids, -1, 1), len(ledger.WORDS)).float()
            logits[:, -1, EOS] = 2.0
            logits[: self.wrong_in, 40] = 0.0
            return type("Output", (), {"logits": logits})

    level = ledger.Level(4, 8, 1)
    assert train.exact(Perfect(0), ledger, level, 10, 1, "cpu") == 1.0
    assert train.exact(Perfect(3), ledger, level, 10, 1, "cpu") == 0.7


@pytest.mark.parametrize(("directory", "family", "name"), TRAINED, ids=[name for *_, name in TRAINED])
def test_the_models_in_the_repository_solve_their_problems(directory, family, name):
    """Token for token, with their full KV: what is lost under compression is lost to compression."""
    model = AutoModelForCausalLM.from_pretrained(HERE / directory, dtype=torch.float32)
    assert train.exact(model, family, family.LADDER[name], 24, seed=77, device="cpu") >= 0.95


@pytest.mark.parametrize(("directory", "family"), MODELS.items(), ids=MODELS)
def test_a_tokenizer_takes_a_problem_as_it_is(directory, family):
    tokenizer = AutoTokenizer.from_pretrained(HERE / directory)
    problem = problems(family, next(iter(family.LADDER.values())), 1, seed=1)[0]
    asked = [{"role": "user", "content": problem.message(family.WORDS)}]
    assert tokenizer(tokenizer.apply_chat_template(asked, tokenize=False))["input_ids"] == problem.prompt
    assert family.WORDS.encode(tokenizer.decode(problem.thoughts)) == problem.thoughts
    assert sum(file.stat().st_size for file in (HERE / directory).iterdir()) < 10 * 2**20
