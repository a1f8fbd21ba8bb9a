"""DSPy: a language model, and programs with a signature.

The small model follows no instruction about formats. So each program sends the regular expression of its answer, and
the server's grammar forces it: what DSPy parses is then the server's work alone, on stock SGLang as with RPC. A JSON
schema would not do: it allows white space between two values, and the small model may write it without end.
"""

from __future__ import annotations

import dspy

from tests.clients.target import TOKENS, Target, expect

#: What the outputs of each signature look like. A thought is long enough for two compressions.
REPLY = r'\{"yes": (true|false), "color": "(blue|green)"\}'
THOUGHT_OUT = r'\{"reasoning": "[A-Za-z ,.]{150,200}", "yes": (true|false)\}'
THOUGHT_TOKENS = 256


def _model(target: Target, **more) -> dspy.LM:
    asked = {"max_tokens": TOKENS, "temperature": 0.5, "cache": False, "num_retries": 0, **more}
    return dspy.LM("openai/m", api_base=target.url + "/v1", api_key="none", **asked)


def _run(target: Target, program: dspy.Module, regex: str, **body) -> dspy.Prediction:
    model = _model(target, extra_body={"regex": regex, **body}, max_tokens=THOUGHT_TOKENS)
    with dspy.context(lm=model, adapter=dspy.JSONAdapter()):
        return program(question="Is the sky blue?")


def check_a_call(target: Target) -> None:
    answer = _model(target)("Tell me a long story about a dragon who learns to cook.")
    expect(len(str(answer[0])) > 100, str(answer))


def check_samples(target: Target) -> None:
    expect(len(_model(target)("Tell me a long story.", n=3)) == 3)


def check_a_program(target: Target) -> None:
    program = dspy.Predict("question -> yes: bool, color: Literal['blue', 'green']")
    result = _run(target, program, REPLY)
    expect(isinstance(result.yes, bool) and result.color in ("blue", "green"), str(result))


def check_a_chain_of_thought(target: Target) -> None:
    result = _run(target, dspy.ChainOfThought("question -> yes: bool"), THOUGHT_OUT)
    expect(isinstance(result.yes, bool) and len(result.reasoning) > 100, str(result))


def check_a_chain_of_thought_with_options(target: Target) -> None:
    options = {"rpc": {"interval": 8, "window": 4}}
    result = _run(target, dspy.ChainOfThought("question -> yes: bool"), THOUGHT_OUT, custom_params=options)
    expect(isinstance(result.yes, bool) and len(result.reasoning) > 100, str(result))
