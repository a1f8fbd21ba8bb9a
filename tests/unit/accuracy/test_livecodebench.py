"""Programs of LiveCodeBench: how they are run and judged."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib

import pytest

from eval.accuracy import livecodebench
from eval.accuracy.errors import EvalError
from eval.accuracy.rows import Row
from eval.accuracy.verdict import Problem, Verdict
from tests.unit.accuracy.data import row


def lcb(public=(("1 2\n", "3\n"),), private=None, kind="stdin", **values) -> Row:
    def tests(pairs):
        return json.dumps([{"input": given, "output": wanted, "testtype": kind} for given, wanted in pairs])

    plain = {"question_content": "Add.", "question_id": "q1", "starter_code": "", "metadata": "{}"}
    packed = "" if private is None else base64.b64encode(zlib.compress(pickle.dumps(tests(private)))).decode()
    return row(**{**plain, "public_test_cases": tests(public), "private_test_cases": packed, **values})


def problem(**values) -> Problem:
    (only,), _ = livecodebench.problems([lcb(**values)], "livecodebench")
    return only


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_code_is_the_last_fenced_block(text, expected):
    assert livecodebench.code(text) == expected


@pytest.mark.parametrize(
    ("said", "expected", "equal"),
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
def test_lines_are_equal_as_the_public_checker_has_it(said, expected, equal):
    assert livecodebench.same_lines(said, expected) is equal


def test_a_program_is_run_on_every_test():
    both = problem(private=[("5 5\n", "10\n"), ("0 0", "0")])
    solution = """from __future__ import annotations
def main():
    print(sum(map(int, input().split())))
if __name__ == "__main__":
    main()
    exit()
"""
    assert livecodebench.judge(both, solution) == Verdict(True, {"passed": "3/3"})
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
    ("body", "correct"),
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
def test_a_function_is_called_with_each_tests_arguments(body, correct):
    code = f"""class Solution:
    def add(self, a: int, b: List[int]) -> List[int]:
        {body}
if __name__ == "__main__":
    Solution().add(input(), input())
"""
    assert livecodebench.judge(problem(**FUNCTION), code).correct is correct


def test_the_prompt_is_the_public_one():
    plain, starter = problem().message, problem(**FUNCTION).message
    assert "### Question:\nAdd.\n\n### Format: Read the inputs from stdin" in plain
    assert "starter code" in starter
    assert "```python\nclass Solution:\n    def add(self, a, b):\n```" in starter
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
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
