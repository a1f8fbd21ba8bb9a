"""LiveCodeBench: programs judged by their outputs, under the rules of its public checker.

A test gives a text on standard input, or arguments of a function of the starter code; six seconds each, one process
each (sandbox.py). Printed lines must be equal but for white space at their ends, or be the same decimal numbers.
Public tests are the samples in the problem's text: passing them is no pass@1, and is not called so.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zlib
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from eval.accuracy import sandbox
from eval.accuracy.rows import Row
from eval.accuracy.verdict import Problem, Verdict

HUB = "livecodebench/code_generation_lite"
RELEASES = ("v1", "v2", "v3", "v4", "v5", "v6")
#: Bytes of one problem's unpacked private tests; the largest of the public data set has a tenth of it.
MOST = 2 << 30

# Of its generic template (lcb_runner/prompts/code_generation.py).
SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
WITH_STARTER = (
    "### Format: You will use the following starter code to write the solution to the problem and enclose your code "
    "within delimiters.\n```python\n{starter}\n```\n\n"
)
WITHOUT_STARTER = (
    "### Format: Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on "
    "the sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it "
    "reads the inputs, runs the algorithm and writes output to STDOUT.\n```python\n# YOUR CODE HERE\n```\n\n"
)
ANSWER = "### Answer: (use the provided format with backticks)\n\n"

#: What its checker imports before a solution.
MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
)
IMPORTS = "\n".join(
    [f"from {name} import *" for name in (*MODULES.split(), "json", "builtins", "typing")]
    + [f"import {name}" for name in (*MODULES.split(), "json")]
    + ["sys.setrecursionlimit(50000)", "sys.set_int_max_str_digits(50000)", ""]
)
#: Runs the solution as it stands; of a function, as a module that is not the main one.
RUN = """
import sys
__name__ = {name!r}
sys.modules[__name__] = sys.modules["__main__"]
try:
    exec(compile({code!r}, "solution.py", "exec"), globals())
except SystemExit:
    pass
"""
#: Calls the function with the arguments on standard input, and prints nothing but what it returned.
CALL = """
def _call(name):
    import io, json, os, sys
    out = os.dup(1)
    os.dup2(2, 1)
    arguments = [json.loads(line) for line in sys.stdin.read().split("\\n")]
    sys.stdin = io.StringIO()
    owner = globals().get("Solution")
    function = getattr(owner(), name) if owner else globals()[name]
    found = function(*arguments)
    def plain(value):
        if hasattr(value, "dtype") and hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: plain(each) for key, each in value.items()}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"the function returned {type(value).__name__}")
    text = json.dumps(plain(list(found) if isinstance(found, tuple) else found))
    sys.stdout.flush()
    with open(out, "w", encoding="utf-8") as file:
        file.write(text)
"""


def problems(rows: Sequence[Row], name: str) -> tuple[list[Problem], bool]:
    """Rows as the data set has them; whether they have private tests: all do, or none. Raises EvalError."""
    found = [_problem(row, f"{name}-{number}") for number, row in enumerate(rows)]
    private = {problem.hidden["private"] is not None for problem in found}
    if len(private) > 1:
        first = next(row for row, problem in zip(rows, found, strict=True) if problem.hidden["private"] is None)
        raise first.error("it has no private tests and others have; give only rows of one kind")
    return found, private == {True}


def code(text: str) -> str | None:
    """The last fenced block, of Python or of no named language; None without one, or if it is empty."""
    last, begun, language = None, None, ""
    lines = text.splitlines()
    for number, line in enumerate(lines):  # once over: a model in a loop may open thousands of blocks
        fence = line.strip()
        if not fence.startswith("```"):
            continue
        if begun is None:
            begun, language = number + 1, fence.strip("`").strip().split(" ")[0].lower()
        elif not fence.strip("`").strip():
            if re.fullmatch(r"|py\w*", language):
                last = "\n".join(lines[begun:number]) + "\n"
            begun = None
    return last if last is not None and last.strip() else None


def judge(problem: Problem, answer: str) -> Verdict:
    """All of the tests, to the first that fails. Raises EvalError where code cannot be run safely."""
    function = problem.hidden["function"]
    program = _program(answer, function)
    tests = [*problem.hidden["public"], *_tests(problem.hidden["private"] or "[]")]
    for number, test in enumerate(tests):
        outcome = sandbox.run(program, test["input"])
        failed = None if outcome.good else _ended(outcome)
        if failed is None and not (same_value if function else same_lines)(outcome.stdout, test["output"]):
            failed = "wrong answer"
        if failed:
            return Verdict(False, {"passed": f"{number}/{len(tests)}", "failed": failed})
    return Verdict(True, {"passed": f"{len(tests)}/{len(tests)}"})


def _program(code: str, function: str | None) -> str:
    run = RUN.format(name="solution" if function else "__main__", code=code)
    return IMPORTS + run + (f"{CALL}\n_call({function!r})\n" if function else "")


def same_lines(said: str, expected: str) -> bool:
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (said, expected))
    return len(ours) == len(theirs) and all(a == b or _same_numbers(a, b) for a, b in zip(ours, theirs, strict=True))


def same_value(said: str, expected: str) -> bool:
    try:
        return bool(json.loads(said) == json.loads(expected))
    except (ValueError, RecursionError):
        return False


def unpacked(text: str) -> Any:
    """Private tests: JSON, or JSON pickled, compressed and in base64. Raises ValueError; runs nothing it is given."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    decompressor = zlib.decompressobj()
    data = decompressor.decompress(base64.b64decode(text, validate=True), MOST)
    if not decompressor.eof:
        raise ValueError("its compressed data is cut short, or longer than 2 GiB")
    return json.loads(_Text(io.BytesIO(data)).load())


class _Text(pickle.Unpickler):
    """A pickle may name any function to be called; a text needs none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, and must be a text alone")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it must be a text alone")


def _same_numbers(ours: str, theirs: str) -> bool:
    try:
        a, b = ([Decimal(word) for word in line.split()] for line in (ours, theirs))
        return a == b
    except (InvalidOperation, ValueError):
        return False


def _ended(outcome: sandbox.Outcome) -> str:
    if outcome.ended != "exit":
        return f"limit: {outcome.ended}"
    last = outcome.stderr.strip().splitlines()[-1:] or [f"exit status {outcome.code}"]
    return f"error: {last[0][:300]}"


def _problem(row: Row, default: str) -> Problem:
    question = row.text("question_content")
    starter = row.values.get("starter_code") or ""
    packed = row.values.get("private_test_cases") or None
    public, private = _row_tests(row, "public_test_cases"), _row_tests(row, "private_test_cases") if packed else []
    if not public and not private:
        raise row.error("it has no test")
    functional = {test["testtype"] == "functional" for test in (*public, *private)}
    if len(functional) > 1:
        raise row.error("its tests must be all of stdin, or all functional")
    function = _function(row) if functional == {True} else None
    message = f"{SYSTEM}\n\n### Question:\n{question}\n\n"
    message += WITH_STARTER.format(starter=starter) if starter else WITHOUT_STARTER
    identity = row.values.get("question_id")
    return Problem(
        row.id(default if identity is None else str(identity)),
        message + ANSWER,
        {"tests": len(public) + len(private)},
        # Unpacked, all private tests of a release are more than most machines' memory.
        {"public": public, "private": packed if private else None, "function": function},
    )


def _function(row: Row) -> str:
    metadata = row.one_of("metadata")
    try:
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
        name = metadata["func_name"]
    except (ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name.isidentifier():
        raise row.error("metadata must name the function of functional tests, as func_name")
    return name


def _row_tests(row: Row, name: str) -> list[dict[str, str]]:
    try:
        return _tests(row.one_of(name))
    except Exception as error:  # damaged pickles raise whatever their opcodes come upon
        raise row.error(f"{name} cannot be read: {type(error).__name__}: {error}") from error


def _tests(value: Any) -> list[dict[str, str]]:
    """Raises ValueError and others for what is no list of tests."""
    tests = unpacked(value) if isinstance(value, str) else value
    kinds = ("stdin", "functional")
    for test in tests if isinstance(tests, list) else [None]:
        if (
            not isinstance(test, dict)
            or not all(isinstance(test.get(key), str) for key in ("input", "output"))
            or test.get("testtype") not in kinds
        ):
            raise ValueError(f"it must be a list of tests with input, output and testtype (of {' or '.join(kinds)})")
    return [{key: test[key] for key in ("input", "output", "testtype")} for test in tests]
