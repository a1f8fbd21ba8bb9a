"""DSPy: a language model, and a program with a signature."""

from __future__ import annotations

import dspy

from tests.clients.target import TOKENS, Target, expect


def _model(target: Target) -> dspy.LM:
    return dspy.LM(
        "openai/m", api_base=target.url + "/v1", api_key="none", max_tokens=TOKENS, temperature=0.5, cache=False
    )


def check_a_call(target: Target) -> None:
    answer = _model(target)("Tell me a long story about a dragon who learns to cook.")
    expect(len(str(answer[0])) > 100, str(answer))


def check_samples(target: Target) -> None:
    expect(len(_model(target)("Tell me a long story.", n=3)) == 3)


def check_a_program(target: Target) -> None:
    with dspy.context(lm=_model(target), adapter=dspy.JSONAdapter()):
        result = dspy.Predict("question -> yes: bool")(question="Is the sky blue?")
    expect(isinstance(result.yes, bool), str(result))
