"""The server against a plain loop, answer by answer: `python -m eval.parity --samples FILE.jsonl --model-path DIR`.

FILE holds greedy samples of eval.accuracy or eval.compare, under the policy `rpc` or `peak` or with nothing evicted.
Each is generated once more by transformers, with the same compression (eval/parity/loop.py, rules.py). Writes a row per
problem beside FILE, `FILE.parity.csv`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from eval.accuracy import tasks
from eval.accuracy.__main__ import positive
from eval.accuracy.errors import EvalError
from eval.accuracy.store import read
from eval.parity.loop import RECORDING, Generated, Thoughts, generate
from eval.parity.rules import RULES, Method

THINK = ("<think>", "</think>")
COLUMNS = ("problem", "same_answer", "same_text", "server", "loop", "expected", "tokens", "loop_tokens", "closest_gap")


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        rows = compare(options)
    except (EvalError, OSError) as error:
        print(f"eval.parity: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing is written", file=sys.stderr)
        return 130
    out = options.samples.with_suffix(".parity.csv")
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    answers, texts = (sum(row[name] for row in rows) for name in ("same_answer", "same_text"))
    print(f"{len(rows)} problems: {answers} answers equal, {texts} texts equal to the last token; {out}")
    for row in rows:
        if not row["same_text"]:
            print(f"{row['problem']}: server {row['server']}, loop {row['loop']}, closest gap {row['closest_gap']}")
    return 0 if answers == len(rows) else 1


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a problem. Raises EvalError."""
    config, samples = read(options.samples)
    if config is None or not samples:
        raise EvalError(f"{options.samples} holds no samples")
    method = method_of(config)
    mine = [row for row in samples if row["sample"] == 0][: options.problems]
    task = tasks.find(config["task"], None, config["problem_seed"], options.data)
    asked = {problem.id: problem for problem in task.problems}
    for row in mine:
        problem = asked.get(row["problem"])
        if problem is None or problem.expected != row["expected"]:
            raise EvalError(
                f"problem {row['problem']} of {options.samples} is not what the task {config['task']} asks today; "
                "sample again"
            )
    tokenizer, model = _load(options)
    prompts = {row["problem"]: _prompt(tokenizer, asked[row["problem"]].message) for row in mine}
    thinks = method is not None and config["server"]["scope_in_effect"] == "think"
    stop = model.generation_config.eos_token_id
    stop = {tokenizer.eos_token_id} | set(stop if isinstance(stop, list) else [stop])
    found: dict[str, Generated] = {}
    with tqdm(total=len(mine), unit="problem", disable=options.quiet) as bar:
        for thoughts, batch in _batches(tokenizer, prompts, thinks, options.batch):
            of = [prompts[id] for id in batch]
            found |= zip(batch, generate(model, of, config["max_tokens"], stop, method, thoughts), strict=True)
            bar.update(len(batch))
    return [_row(row, asked[row["problem"]], task, tokenizer, found[row["problem"]]) for row in mine]


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    """Tokenizer and model. Raises EvalError."""
    transformers_logging.disable_progress_bar()  # of loading weights
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model_path)
        model = AutoModelForCausalLM.from_pretrained(
            options.model_path, dtype=getattr(torch, options.dtype), attn_implementation=RECORDING
        )
    except (OSError, ValueError) as error:
        raise EvalError(f"--model-path {options.model_path} holds no model that transformers loads: {error}") from error
    return tokenizer, model.to(options.device).eval()


def _prompt(tokenizer: Any, message: str) -> list[int]:
    chat = [{"role": "user", "content": message}]
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def _batches(
    tokenizer: Any, prompts: Mapping[str, list[int]], thinks: bool, most: int
) -> Iterator[tuple[Thoughts | None, list[str]]]:
    """Problems whose prompts are equally long and all leave the thoughts open, or all do not; at most so many."""
    alike: dict[tuple[int, Thoughts | None], list[str]] = {}
    for id, prompt in prompts.items():
        alike.setdefault((len(prompt), _thoughts(tokenizer, prompt) if thinks else None), []).append(id)
    for (_, thoughts), ids in alike.items():
        yield from ((thoughts, ids[at : at + most]) for at in range(0, len(ids), most))


def method_of(config: dict[str, Any]) -> Method | None:
    """What the samples were made with; None: nothing was evicted. Raises EvalError if the loop cannot do it."""
    server, asked = config["server"]["rpc"], config["rpc"] or {}
    if config["temperature"] != 0:
        raise EvalError(f"only greedy samples can be compared, these have temperature {config['temperature']}")
    if server is None or asked.get("enabled") is False:
        return None
    if server["policy"] not in RULES:
        known = ", ".join(RULES)
        raise EvalError(f"the loop knows the policies {known}, these samples are of {server['policy']!r}")
    both = {**server, **asked}
    return Method(**{name: both[name] for name in Method.__dataclass_fields__ if name in both})


def _thoughts(tokenizer: Any, prompt: list[int]) -> Thoughts:
    start, end = (tokenizer.convert_tokens_to_ids(marker) for marker in THINK)
    if end is None or end == tokenizer.unk_token_id:
        raise EvalError(f"the model's tokenizer has no token {THINK[1]!r}, where its thoughts would end")
    last = max((i for i, token in enumerate(prompt) if token in (start, end)), default=None)
    return Thoughts(start, end, open=last is not None and prompt[last] == start)


def _row(row: dict[str, Any], problem: Any, task: Any, tokenizer: Any, made: Generated) -> dict[str, Any]:
    text = tokenizer.decode(made.ids, skip_special_tokens=True)
    before, closed, behind = text.partition(THINK[1])
    thoughts, said = (before, behind) if closed else ("", text) if not row["thoughts"] else (text, "")
    answer = task.answer(said)
    same_text = (thoughts.strip(), said.strip()) == (row["thoughts"].strip(), row["said"].strip())
    return {
        "problem": row["problem"],
        "same_answer": answer == row["answer"],
        "same_text": same_text and len(made.ids) == row["tokens"],
        "server": row["answer"],
        "loop": answer,
        "expected": problem.expected,
        "tokens": row["tokens"],
        "loop_tokens": len(made.ids),
        "closest_gap": f"{min(made.gaps):.2g}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.parity", description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=Path, required=True, metavar="FILE.jsonl", help="of eval.accuracy, greedy")
    parser.add_argument("--model-path", required=True, help="the model that gave them")
    parser.add_argument("--problems", type=positive, default=100)
    parser.add_argument("--batch", type=positive, default=32, metavar="N", help="problems decoded together at most")
    parser.add_argument("--data", type=Path, metavar="FILE", help="rows of the task, if they were given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(main())
