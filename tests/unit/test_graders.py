"""What counts as an answer, and which answers are right: mathematics, IFEval, LiveCodeBench."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import socket
import time
import zlib

import pytest

from eval.accuracy import ifeval, livecodebench, mathematics
from eval.accuracy.errors import EvalError
from eval.accuracy.judges import Judges
from eval.accuracy.rows import Row
from eval.accuracy.verdict import Problem, Verdict, answer_part

# ---- thoughts ----


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
def test_an_answer_is_what_stands_behind_the_thoughts(said, thoughts, finish, answer):
    assert answer_part(said, thoughts, finish) == answer


# ---- mathematics ----


@pytest.mark.parametrize(
    ("text", "found"),
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
def test_the_last_box_is_the_answer(text, found):
    assert mathematics.boxed(text) == found


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
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
def test_numbers_are_equal_however_they_are_written(expected, answer, right):
    assert mathematics.judge(Problem("p", "", expected), answer) == Verdict(right)


def row(**values) -> Row:
    return Row("f.jsonl, line 3", values)


def test_rows_of_aime():
    one, two = mathematics.aime(
        [row(problem="P {x}", expected_answer="033", id="a"), row(prompt="Q", answer=7)], "aime24"
    )
    assert (one.id, one.expected) == ("a", "33") and one.message.startswith("P {x}\nPlease reason step by step")
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
    assert named in str(caught.value) and str(caught.value).startswith("f.jsonl, line 3: ")


def test_rows_of_gsm8k():
    found = mathematics.gsm8k(
        [
            row(question="Q", answer="She has 1 + 2.\n#### 18,000"),
            row(question="Q", answer=-3),
            row(question="Q", answer="#### 1e3"),
        ],
        "g",
    )
    assert [problem.expected for problem in found] == ["18000", "-3", "1000"]
    for wrong in ("#### many", "no number", "#### ", "nan", "inf"):
        with pytest.raises(EvalError, match="must end in `#### NUMBER`"):
            mathematics.gsm8k([row(question="Q", answer=wrong)], "g")


# ---- graders that fail ----


def fails(problem: Problem, answer: str) -> Verdict:
    if answer == "hang":
        time.sleep(60)
    if answer == "crash":
        os._exit(7)
    if answer == "memory":
        bytearray(9 << 30)  # a machine would give it, untouched
    if answer == "recursion":
        return fails(problem, answer)
    if answer == "cannot go on":
        raise EvalError("cannot go on")
    return Verdict(True)


def test_a_grader_that_fails_costs_its_verdict_alone():
    async def ask():
        judges = Judges(fails, 2, seconds=8)
        try:
            wrong = ("crash", "memory", "recursion")
            assert await judges(Problem("p", "", ""), "right") == Verdict(True)  # started
            found = await asyncio.gather(*[judges(Problem("p", "", ""), each) for each in (*wrong, *["right"] * 5)])
            with pytest.raises(EvalError, match="cannot go on"):
                await judges(Problem("p", "", ""), "cannot go on")
            return found
        finally:
            judges.close()

    crash, memory, recursion, *right = asyncio.run(ask())
    assert crash == Verdict(False, error="the grader ended with 7")
    assert not memory.correct and memory.error.startswith("MemoryError")
    assert not recursion.correct and recursion.error.startswith("RecursionError")
    assert right == [Verdict(True)] * 5


def test_a_grader_that_hangs_is_ended():
    async def ask():
        judges = Judges(mathematics.judge, 1, seconds=10)
        try:
            problem = Problem("p", "", "204")
            assert (await judges(problem, "204")).correct
            judges._seconds = 1.0
            found = await judges(problem, "10^{10^{10^{10}}}")
            judges._seconds = 20.0
            return found, await judges(problem, "204")
        finally:
            judges.close()

    hung, after = asyncio.run(ask())
    assert hung == Verdict(False, error="the grader took more than 1 s") and after.correct


def test_closing_waits_for_nobody():
    async def ask():
        judges = Judges(fails, 1, seconds=60)
        await judges(Problem("p", "", ""), "right")
        hanging = asyncio.ensure_future(judges(Problem("p", "", ""), "hang"))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        judges.close()
        with pytest.raises(EvalError, match="stopped"):
            await hanging
        return time.monotonic() - began

    assert asyncio.run(ask()) < 10


# ---- IFEval ----


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def instructed(*pairs, prompt="Write.") -> Problem:
    names, kwargs = zip(*pairs, strict=True)
    (found,) = ifeval.problems([row(prompt=prompt, instruction_id_list=list(names), kwargs=list(kwargs))], "ifeval")
    return found


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


def test_the_language_is_found_the_same_each_time():
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


# ---- LiveCodeBench ----


def lcb(public=(("1 2\n", "3\n"),), private=None, kind="stdin", **values) -> Row:
    def tests(pairs):
        return json.dumps([{"input": given, "output": wanted, "testtype": kind} for given, wanted in pairs])

    plain = {"question_content": "Add.", "question_id": "q1", "starter_code": "", "metadata": "{}"}
    packed = "" if private is None else base64.b64encode(zlib.compress(pickle.dumps(tests(private)))).decode()
    return row(**{**plain, "public_test_cases": tests(public), "private_test_cases": packed, **values})


def problem(**values) -> Problem:
    (found,), _ = livecodebench.problems([lcb(**values)], "livecodebench")
    return found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Here:\n```python\nprint(1)\n```\nDone.", "print(1)\n"),
        ("```python\nold\n```\nbetter:\n```python\nnew\n```", "new\n"),
        ("```\nplain\n```", "plain\n"),
        ("```python\nx\n```\nIt prints\n```text\n3\n```", "x\n"),
        ("```Python3\nx\n```", "x\n"),
        ("1. so\n   ```python\n   x\n   ```", "   x\n"),
        ("```python\nnever closed", None),
        ("```python\n\n```", None),
        ("print(1)", None),
        ("", None),
    ],
)
def test_code_is_the_last_fenced_block(text, found):
    assert livecodebench.code(text) == found


@pytest.mark.parametrize(
    ("said", "expected", "right"),
    [
        ("3\n", "3", True),
        ("  3  \n\n", "3", True),
        ("1 2\n3 4", "1 2 \n 3 4\n", True),
        ("1  2", "1 2", True),
        ("1.0 2.50", "1 2.5", True),
        ("1.0", "1.0000001", False),
        ("50000000000000001", "50000000000000000", False),
        ("YES", "Yes", False),
        ("a  b", "a b", False),
        ("3\n3", "3", False),
        ("1\n\n2", "1\n2", False),
        ("", "3", False),
        ("nan", "nan", True),
        ("nan 1", "nan 1.0", False),
    ],
)
def test_lines_are_equal_as_the_public_checker_has_it(said, expected, right):
    assert livecodebench.same_lines(said, expected) is right


def test_a_program_is_run_on_every_test():
    both = problem(private=[("5 5\n", "10\n"), ("0 0", "0")])
    right = """from __future__ import annotations
def main():
    print(sum(map(int, input().split())))
if __name__ == "__main__":
    main()
    exit()
"""
    assert livecodebench.judge(both, right) == Verdict(True, {"passed": "3/3"})
    assert livecodebench.judge(both, "print(3)") == Verdict(False, {"passed": "1/3", "failed": "wrong answer"})
    failed = livecodebench.judge(both, "print(int(input()))").details["failed"]
    assert failed.startswith("error: ValueError: invalid literal")


FUNCTION = dict(
    kind="functional",
    public=[("1\n[2]", "[1, 2]")],
    starter_code="class Solution:\n    def add(self, a, b):",
    metadata='{"func_name": "add"}',
)


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ("return [a, *b]", True),
        ("print('noise'); return (a, *b)", True),  # a tuple is a list
        ("import numpy; return list(numpy.array([a, *b]))", True),
        ("return [a, b]", False),
        ("return [(a, *b)]", False),
        ("return None", False),
        ("import os; os.write(1, b'[1, 2]'); os._exit(0)", False),
        ("raise SystemExit", False),
        ("return {1, 2}", False),
    ],
)
def test_a_function_is_called_with_each_tests_arguments(body, right):
    code = f"""class Solution:
    def add(self, a: int, b: List[int]) -> List[int]:
        {body}
if __name__ == "__main__":
    Solution().add(input(), input())
"""
    assert livecodebench.judge(problem(**FUNCTION), code).correct is right


def test_the_prompt_is_the_public_one():
    plain, starter = problem().message, problem(**FUNCTION).message
    assert "### Question:\nAdd.\n\n### Format: Read the inputs from stdin" in plain
    assert "starter code" in starter and "```python\nclass Solution:\n    def add(self, a, b):\n```" in starter
    assert plain.endswith("### Answer: (use the provided format with backticks)\n\n")


def test_tests_stay_out_of_the_rows():
    assert problem(private=[("5 5\n", "10\n")]).expected == {"tests": 2}


def test_private_tests_make_it_pass_at_1_and_their_lack_does_not():
    assert livecodebench.problems([lcb()], "l")[1] is False
    assert livecodebench.problems([lcb(private=[("1", "1")])], "l")[1] is True
    with pytest.raises(EvalError, match="it has no private tests and others have"):
        livecodebench.problems([lcb(private=[("1", "1")], question_id="a"), lcb(question_id="b")], "l")


class Run:
    """What a hostile pickle holds."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def packed(value) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def test_a_pickle_runs_nothing(tmp_path):
    with pytest.raises(EvalError, match=r"it names posix.mkdir, and must be a text alone"):
        livecodebench.problems([lcb(private_test_cases=packed(Run(str(tmp_path / "ran"))))], "l")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"private_test_cases": "no base64!"}, "private_test_cases cannot be read"),
        ({"private_test_cases": base64.b64encode(b"no zlib").decode()}, "private_test_cases cannot be read"),
        ({"private_test_cases": packed("[]")[:-8] + "AAAAAAA="}, "private_test_cases cannot be read"),
        ({"private_test_cases": packed([1])}, "private_test_cases cannot be read"),
        ({"private_test_cases": packed("{}")}, "it must be a list of tests with input, output and testtype"),
        ({"public_test_cases": json.dumps([{"input": 1}])}, "it must be a list of tests"),
        ({"public_test_cases": json.dumps([{"input": "", "output": "", "testtype": "odd"}])}, "stdin or functional"),
        ({"public_test_cases": "[]"}, "it has no test"),
        ({"public_test_cases": None}, "it has no public_test_cases"),
        ({"question_content": ""}, "question_content must be a text"),
        ({**FUNCTION, "metadata": "{}"}, "metadata must name the function"),
        ({**FUNCTION, "metadata": '{"func_name": "a; b"}'}, "metadata must name the function"),
        ({**FUNCTION, "private": [("1", "1")], "metadata": "["}, "metadata must name the function"),
    ],
)
def test_rows_that_are_no_problems_are_refused(values, named):
    with pytest.raises(EvalError, match=r"f\.jsonl, line 3: ") as caught:
        livecodebench.problems([lcb(**values)], "l")
    assert named in str(caught.value) and "\n" not in str(caught.value)
