"""An SGLang frontend program against an sglang-rpc server: two lines of thought share one prompt, then one is chosen.

python -m sglang_rpc.launch_server --model-path MODEL --rpc-reuse share --rpc-reuse-text 256
python examples/frontend_program.py --base-url http://127.0.0.1:30000

A program sends all that it has as text. With the two flags of reuse its later requests take over what it thought.
"""

from __future__ import annotations

import argparse

import sglang as sgl

TOKENS = 120


@sgl.function
def weigh(s, question: str):
    """`fork` branches share the prompt's KV through the prefix tree; each is compressed on its own while it thinks."""
    s += f"Question: {question}\n"
    branches = s.fork(2)
    for branch, angle in zip(branches, ("for", "against"), strict=True):
        branch += f"Thoughts {angle} it: <think>"
        branch += sgl.gen("thoughts", max_tokens=TOKENS, temperature=0)
    s += "For: " + branches[0]["thoughts"][:200] + "\nAgainst: " + branches[1]["thoughts"][:200] + "\n"
    s += "The answer is " + sgl.select("answer", choices=["yes", "no"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:30000")
    args = parser.parse_args()
    sgl.set_default_backend(sgl.RuntimeEndpoint(args.base_url))
    state = weigh.run(question="Should a small garden have a pond?")
    print(state.text())
    print("answer:", state["answer"])


if __name__ == "__main__":
    main()
