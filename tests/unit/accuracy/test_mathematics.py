"""Which part of a text is its answer, and which numbers are equal."""

from __future__ import annotations

import pytest

from eval.accuracy import mathematics
from eval.accuracy.errors import EvalError
from eval.accuracy.verdict import Problem, Verdict, answer_part
from tests.unit.accuracy.data import row


@pytest.mark.parametrize(
    ("said", "thoughts", "finish", "answer"),
    [
        ("It is 4.", "2 + 2", "stop", "It is 4."),  # a reasoning parser
        ("2 + 2</think>It is 4.", "", "stop", "It is 4."),  # none; the template opened the thoughts
        ("<think>2 + 2</think>It is 4.", "", "stop", "It is 4."),
        ("<think>a</think>b</think>It is 4.", "", "stop", "It is 4."),
        ("It is 4.", "", "stop", "It is 4."),  # a model that does not think
        (r"so \boxed{4}. Wait,", "", "length", ""),  # cut off in its thoughts
        (r"<think>\boxed{4}", "", "stop", ""),
        ("", r"\boxed{4}", "length", ""),
        ("<think>x</think>It is", "", "length", "It is"),
    ],
)
def test_an_answer_is_what_stands_after_the_thoughts(said, thoughts, finish, answer):
    assert answer_part(said, thoughts, finish) == answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"The answer is \boxed{204}.", "204"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\left\{1, 2\right.} end", r"\left\{1, 2\right."),
        (r"\boxed{\}}", r"\}"),
        ("\\boxed{\n 7 \n}", "7"),
        (r"\boxed{}", None),
        (r"\boxed{  }", None),
        (r"\boxed{7} and then \boxed{}", None),
        (r"\boxed{7} and then \boxed{\frac{1}{2}", None),
        (r"\boxed{12", None),
        (r"\boxed{12\\", None),
        ("The answer is 204.", None),
        (r"\boxed 7", None),
        (r"\fbox{7}", None),
        ("", None),
    ],
)
def test_the_last_box_is_the_answer(text, expected):
    assert mathematics.boxed(text) == expected


@pytest.mark.parametrize(
    ("expected", "answer", "correct"),
    [
        ("204", "204", True),
        ("25", "025", True),
        ("204", "203", False),
        ("72", "-72", False),
        ("33", r"33^\circ", True),
        ("33", r"33^{\circ}", True),
        ("204", "204 minutes", True),
        ("204", r"204\text{ minutes}", True),
        ("72", r"72\ \text{cm}^2", True),
        ("5", r"\$5", True),
        ("5", r"5\%", True),
        ("72", "72.", True),
        ("72", r"\text{72}", True),
        ("72", r"\textbf{72}", True),
        ("72", "$72$", True),
        ("113", "m+n=113", True),
        ("113", "m + n = 112", False),
        ("204", r"\frac{408}{2}", True),
        ("3.5", r"\frac{7}{2}", True),
        ("2", r"\sqrt{4}", True),
        ("18000", "18,000", True),
        ("18000", r"18\,000", True),
        ("18000", "18{,}000", True),
        ("18000", "18 000", True),
        ("72", "7 2", False),
        ("204", "204, 205", False),
        ("72", r"72 \text{ or } 73", False),
        ("18000", "18000 dollars", True),
        ("18000", r"\$18,000 US dollars.", True),
        ("18000", "18 thousand dollars", False),
        ("72", "72 or x", False),
        ("72", "72 hours and 5 minutes", False),
        ("72", "x", False),
        ("72", "seventy-two", False),
        ("72", r"\frac{", False),
        ("72", "}{", False),
        ("72", "}", False),
        ("72", "\x00", False),
        ("72", "\u0667\u0662", False),
    ],
)
def test_numbers_are_equal_however_they_are_written(expected, answer, correct):
    assert mathematics.judge(Problem("p", "", expected), answer) == Verdict(correct)


def test_rows_of_aime():
    one, two = mathematics.aime(
        [row(problem="P {x}", expected_answer="033", id="a"), row(prompt="Q", answer=7)], "aime24"
    )
    assert (one.id, one.expected) == ("a", "33")
    assert one.message.startswith("P {x}\nPlease reason step by step")
    assert one.message.endswith(r"put your final answer within \boxed{}.")
    assert (two.id, two.message, two.expected) == ("aime24-1", "Q", "7")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"problem": "P", "answer": 1000}, "from 0 to 999, got 1000"),
        ({"problem": "P", "answer": -1}, "from 0 to 999, got -1"),
        ({"problem": "P", "answer": "m"}, "from 0 to 999, got 'm'"),
        ({"problem": "P", "answer": True}, "from 0 to 999, got True"),
        ({"problem": "P"}, "it has no answer or expected_answer; its fields are problem"),
        ({"answer": 1}, "it has no problem or question"),
        ({"problem": " ", "answer": 1}, "problem or question must be a text that is not empty"),
        ({"problem": 3, "answer": 1}, "must be a text that is not empty, got 3"),
        ({"problem": "P", "answer": 1, "id": []}, "id must be a text or a number"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(values, named):
    with pytest.raises(EvalError) as caught:
        mathematics.aime([row(**values)], "aime24")
    assert named in str(caught.value)
    assert str(caught.value).startswith("f.jsonl, line 3: ")


def test_rows_of_gsm8k():
    problems = mathematics.gsm8k(
        [
            row(question="Q", answer="She has 1 + 2.\n#### 18,000"),
            row(question="Q", answer=-3),
            row(question="Q", answer="#### 1e3"),
        ],
        "g",
    )
    assert [problem.expected for problem in problems] == ["18000", "-3", "1000"]
    for wrong in ("#### many", "no number", "#### ", "nan", "inf"):
        with pytest.raises(EvalError, match="must end in `#### NUMBER`"):
            mathematics.gsm8k([row(question="Q", answer=wrong)], "g")
