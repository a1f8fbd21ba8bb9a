"""Instructions of IFEval: how they are checked."""

from __future__ import annotations

import socket

import pytest

from eval.accuracy import ifeval
from eval.accuracy.errors import EvalError
from eval.accuracy.verdict import Problem, Verdict
from tests.unit.accuracy.data import row


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def instructed(*pairs, prompt="Write.") -> Problem:
    names, kwargs = zip(*pairs, strict=True)
    (problem,) = ifeval.problems([row(prompt=prompt, instruction_id_list=list(names), kwargs=list(kwargs))], "ifeval")
    return problem


NO_COMMA = ("punctuation:no_comma", {})
THREE_SENTENCES = ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 3})
CAPITALS = ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2})


def test_all_instructions_must_be_followed(no_network):
    problem = instructed(NO_COMMA, THREE_SENTENCES)
    assert ifeval.judge(problem, "One. Two. Three.") == Verdict(
        True, {"loose": True, "instructions_strict": "2/2", "instructions_loose": "2/2"}
    )
    assert ifeval.judge(problem, "One, two. Three.") == Verdict(
        False, {"loose": False, "instructions_strict": "0/2", "instructions_loose": "0/2"}
    )
    loosely = ifeval.judge(problem, "Sure, here it is:\nOne. Two. Three.")
    assert loosely == Verdict(False, {"loose": True, "instructions_strict": "1/2", "instructions_loose": "2/2"})


def test_sentences_are_split_as_by_nltks_english_model_without_the_network(no_network):
    # A naive splitter sees 7 sentences: the model knows Dr., U.S. and a.m.
    text = "Dr. Smith arrived from the U.S. embassy at 9 a.m. on Monday. He slept. Was it so?"
    at_least = [
        ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": count}) for count in (3, 4)
    ]
    assert [ifeval.judge(instructed(each), text).correct for each in at_least] == [True, False]


def test_the_splitters_tables_are_nltks():
    """As many as english punkt_tab has; which they are is checked by the package that brings them."""
    from if_verifiable.ifeval import instructions_util

    instructed(NO_COMMA)
    parameters = instructions_util._get_sentence_tokenizer()._params
    tables = (parameters.abbrev_types, parameters.collocations, parameters.sent_starters, parameters.ortho_context)
    assert [len(table) for table in tables] == [156, 37, 39, 20366]


def test_words_in_capitals_need_the_splitter_too(no_network):
    assert ifeval.judge(instructed(CAPITALS), "It IS SO.").correct
    assert not ifeval.judge(instructed(CAPITALS), "It IS so.").correct


def test_a_letter_that_is_none_is_counted_and_not_drawn_by_lot():
    hashes = ("keywords:letter_frequency", {"let_relation": "at least", "letter": "#", "let_frequency": 2})
    assert [ifeval.judge(instructed(hashes), text).correct for text in ("#a #b", "a b #")] == [True, False]


def test_the_language_is_detected_the_same_each_time():
    """langdetect draws lots: of these words it says Italian one time in eight."""
    italian = instructed(("language:response_language", {"language": "it"}))
    assert len({ifeval.judge(italian, "no son in an").correct for _ in range(60)}) == 1


def test_the_hubs_empty_columns_are_no_arguments():
    problem = instructed(("punctuation:no_comma", {"num_words": None, "keywords": None}))
    assert problem.expected["kwargs"] == [{}]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"instruction_id_list": ["no:such"], "kwargs": [{}]}, "knows no instruction 'no:such'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "lists of the same length"),
        ({"instruction_id_list": [], "kwargs": []}, "not empty"),
        ({"instruction_id_list": "punctuation:no_comma", "kwargs": [{}]}, "lists of the same length"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [3]}, "must be an object, got 3"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"a": 1}]}, "kwargs of punctuation:no_comma"),
        (
            {"instruction_id_list": ["length_constraints:number_sentences"], "kwargs": [{"relation": "at least"}]},
            "must be num_sentences, relation; ValueError: one of them is missing",
        ),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}, "must be keywords"),
        (
            {"instruction_id_list": ["keywords:letter_frequency"], "kwargs": [{"letter": "ab", "let_frequency": 1}]},
            "letter must be one character",
        ),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused(values, named):
    with pytest.raises(EvalError, match=r"f\.jsonl, line 3: ") as caught:
        ifeval.problems([row(prompt="P", **values)], "ifeval")
    assert named in str(caught.value)


def test_all_four_accuracies_are_told():
    problem = instructed(NO_COMMA, THREE_SENTENCES)
    texts = ["One. Two. Three.", "Sure, here it is:\nOne. Two. Three.", None]
    rows = [
        {"expected": problem.expected, "details": {} if text is None else ifeval.judge(problem, text).details}
        for text in texts
    ]
    (line,) = ifeval.summary(rows)
    assert line == "that is prompt-level strict; loose 0.667; of instructions, strict 0.500, loose 0.667"
