"""Think once, fork eight times: every fork goes on from the compressed thought, and all of them hold it together.

python -m sglang_rpc.launch_server --model-path MODEL --rpc-reuse share
python examples/fork_thoughts.py --base-url http://127.0.0.1:30000 --tokenizer MODEL

Ids are sent, not text: generated ids are not always what a tokenizer makes of their text, and one that differs early
has all of the thought prefilled again.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from typing import Any

QUESTION = "Should a small garden have a pond?"
ANGLES = ("cost", "frogs", "children", "winter", "light", "neighbours", "mosquitoes", "time")


def generate(base_url: str, input_ids: list[int], tokens: int, **sampling: Any) -> dict[str, Any]:
    """One request to /generate; `custom_params` ask for a receipt."""
    params = {"max_new_tokens": tokens, "temperature": 0, "custom_params": {"rpc": {}}, **sampling}
    body = json.dumps({"input_ids": input_ids, "sampling_params": params}).encode()
    request = urllib.request.Request(f"{base_url}/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        result: dict[str, Any] = json.load(response)
    return result


def think_and_fork(
    base_url: str, prompt: list[int], angles: list[list[int]], think: int, answer: int, **sampling: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The thought, and what follows it after each of `angles`, all of them token ids."""
    thought = generate(base_url, prompt, think, **sampling)
    text = [*prompt, *thought["output_ids"]]
    return thought, [generate(base_url, [*text, *angle], answer, **sampling) for angle in angles]


def receipt_line(result: dict[str, Any]) -> str:
    """What a fork took over, and what it had to compute of its prompt."""
    meta = result["meta_info"]
    rpc = meta["rpc"]
    computed = meta["prompt_tokens"] - meta["cached_tokens"]
    if not rpc["reused"]:
        return f"nothing taken over ({rpc['not_reused']}); tokens prefilled: {computed}"
    return f"{rpc['reused']} tokens taken over as {rpc['reused_held']} KV entries; tokens prefilled: {computed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:30000")
    parser.add_argument("--tokenizer", required=True, help="folder or name of the served model")
    parser.add_argument("--think", type=int, default=6000, help="tokens of the thought; P + R or fewer stay whole")
    parser.add_argument("--answer", type=int, default=200, help="tokens of each fork")
    args = parser.parse_args()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    prompt = tokenizer.encode(f"Question: {QUESTION}\nThoughts: <think>\n")
    angles = [tokenizer.encode(f"\nWhat about {angle}?", add_special_tokens=False) for angle in ANGLES]
    thought, forks = think_and_fork(args.base_url, prompt, angles, args.think, args.answer)
    rpc = thought["meta_info"]["rpc"]
    print(f"thought: {rpc['generated']} tokens held as {rpc['held']} KV entries")
    for angle, fork in zip(ANGLES, forks, strict=True):
        print(f"{angle}: {receipt_line(fork)}")


if __name__ == "__main__":
    main()
