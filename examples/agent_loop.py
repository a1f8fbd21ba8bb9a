"""An agent that thinks, calls a tool, and thinks on: earlier thoughts stay compressed, and are not prefilled again.

python -m sglang_rpc.launch_server --model-path MODEL --rpc-reuse continue
python examples/agent_loop.py --base-url http://127.0.0.1:30000 --tokenizer MODEL

The OpenAI client sends `input_ids`, so that each request begins with exactly the ids that the one before ended with. A
list of messages would be rendered and tokenized anew: many templates leave earlier thoughts out, and a tokenizer may
make other ids of the same text.
"""

from __future__ import annotations

import argparse
import ast
import json
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openai import OpenAI

TASK = "What is 17 * 23 - 4 * 19? Use the calculator for each step, then say the result."
SYSTEM = (
    'Think first. To calculate, write <tool_call>{"name": "calculate", "arguments": {"expression": "1 + 2"}}'
    "</tool_call> and wait for the result."
)
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@dataclass(frozen=True)
class Turn:
    """What one request generated, and what the server says of it."""

    output_ids: list[int]
    text: str
    meta: dict[str, Any]

    @property
    def line(self) -> str:
        """What it went on with, and what it had to compute of its prompt."""
        rpc, computed = self.meta["rpc"], self.meta["prompt_tokens"] - self.meta["cached_tokens"]
        return f"went on with {rpc['continued']} tokens, {rpc['held']} entries held; tokens prefilled: {computed}"


def ask(client: OpenAI, ids: list[int], tokens: int, **extra: Any) -> Turn:
    """One request. The messages only have to be there: `input_ids` are the prompt."""
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": "-"}],
        max_tokens=tokens,
        temperature=0,
        extra_body={
            "input_ids": ids,
            "return_token_ids": True,
            "return_meta_info": True,
            "custom_params": {"rpc": {}},
            **extra,
        },
    )
    choice = answer.choices[0]
    thought = getattr(choice.message, "reasoning_content", None) or ""
    more = choice.model_extra
    return Turn(more["response_token_ids"], thought + (choice.message.content or ""), more["meta_info"])


def run(
    client: OpenAI, prompt: list[int], act: Callable[[str], list[int] | None], turns: int, tokens: int, **extra: Any
) -> list[Turn]:
    """Think and act in turn: `act` gives the ids of a tool's result for what was generated; None: it is done."""
    ids, done = list(prompt), []
    for _ in range(turns):
        turn = ask(client, ids, tokens, **extra)
        done.append(turn)
        result = act(turn.text)
        if result is None:
            break
        ids = [*ids, *turn.output_ids, *result]
    return done


def called(text: str) -> str | None:
    """The expression of the last call in `text`; None if there is no call that can be read."""
    calls = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    try:
        expression: str = json.loads(calls[-1])["arguments"]["expression"]
    except (IndexError, ValueError, KeyError, TypeError):
        return None
    return expression


def calculate(expression: str) -> str:
    """The tool: sums and products of numbers, and nothing else."""

    def value(node: ast.AST) -> float:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        raise ValueError(expression)

    try:
        return f"{value(ast.parse(expression, mode='eval').body):g}"
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError):
        return "not an expression of numbers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:30000")
    parser.add_argument("--tokenizer", required=True, help="folder or name of the served model, which writes ChatML")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=2000, help="of each turn")
    args = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    opening = "<|im_start|>assistant\n<think>\n"
    chat = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{TASK}<|im_end|>\n{opening}"

    def act(text: str) -> list[int] | None:
        expression = called(text)
        if expression is None:
            return None
        # Still inside of its thought: the region that is compressed goes on after the result.
        result = f"\n<tool_response>\n{calculate(expression)}\n</tool_response>\n"
        return tokenizer.encode(result, add_special_tokens=False)

    client = OpenAI(base_url=args.base_url + "/v1", api_key="none")
    prompt = tokenizer.encode(chat, add_special_tokens=False)
    for turn in run(client, prompt, act, args.turns, args.tokens, stop="</tool_call>", no_stop_trim=True):
        print(turn.text)
        print(f"[{turn.line}]")


if __name__ == "__main__":
    main()
