"""Talk to an sglang-rpc server with the OpenAI client: thoughts and answer apart, options and receipt of one request.

python examples/openai_client.py --base-url http://127.0.0.1:30000
"""

from __future__ import annotations

import argparse
from typing import Any

from openai import BadRequestError, OpenAI

QUESTION = "I have 23 apples, give away 9 and buy 4 bags of 6. How many apples do I have?"


def streamed(client: OpenAI, tokens: int) -> tuple[str, str]:
    """(thoughts, answer), printed as they arrive."""
    thoughts, answer = [], []
    stream = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta
        thought = getattr(delta, "reasoning_content", None) or ""
        thoughts.append(thought)
        answer.append(delta.content or "")
        print(thought + (delta.content or ""), end="", flush=True)
    print()
    return "".join(thoughts), "".join(answer)


def with_receipt(client: OpenAI, tokens: int, rpc: dict[str, Any]) -> dict[str, Any]:
    """One request with RPC options of its own; its receipt."""
    answer = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=tokens,
        temperature=0,
        extra_body={"custom_params": {"rpc": rpc}, "return_meta_info": True},
    )
    return answer.choices[0].model_extra["meta_info"]["rpc"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:30000")
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    client = OpenAI(base_url=args.base_url + "/v1", api_key="none")
    thoughts, answer = streamed(client, args.tokens)
    print(f"\n{len(thoughts)} characters of thoughts, {len(answer)} of answer")
    print("receipt:", with_receipt(client, args.tokens, {"interval": 32, "window": 8}))
    print("off:    ", with_receipt(client, args.tokens, {"enabled": False}))
    try:
        with_receipt(client, args.tokens, {"ratio": 1})
    except BadRequestError as error:
        print("refused:", error.message)


if __name__ == "__main__":
    main()
