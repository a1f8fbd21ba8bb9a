"""`python -m eval.bench.speculative --out DIR`: what a trained draft is worth to the small reasoner, compressed or not.

The same problems are solved by a server without drafts and by one with (STANDALONE), each with compression and, in the
same server, without. Greedily, so that outputs must be equal, problem by problem. Receipts and SGLang's counts say how
many tokens a step gave: before the first compression, after it, and uncompressed.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import aiohttp

from eval.accuracy.statistics import standard_error
from eval.bench import machine
from eval.bench.arms import RPC_MODULE
from eval.bench.errors import BenchError
from eval.bench.server import ROOT, running
from eval.reasoner import ledger, words

REASONER = ROOT / "eval" / "reasoner"
MODEL, DRAFT = REASONER / "model", REASONER / "draft-model"


@dataclass(frozen=True)
class Row:
    """One problem under one policy, solved four times."""

    policy: str
    ratio: float
    problem: int
    right: int  #: compressed, with drafts
    right_without: int  #: compressed, without drafts
    right_uncompressed: int  #: with drafts
    same: int  #: whether drafts changed no token, compressed and not
    compressions: int
    cuts: int  #: steps that ended at a due date
    tokens_before: int  #: until the first compression, but for the first, which the prefill gives
    steps_before: float
    tokens_after: int
    steps_after: float
    tokens_uncompressed: int  #: with drafts, all but the first
    steps_uncompressed: int


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured and written; 1: not so, and the last line says why."""
    asked = _parser().parse_args(argv)
    rows: list[Row] = []
    try:
        for policy in asked.policies.split(","):
            rows += _measured(policy, asked)
            _write(rows, asked.out)
    except (BenchError, aiohttp.ClientError) as error:
        print(f"speculative: {error}", file=sys.stderr)
        return 1
    print(summary(rows))
    return 0


def _measured(policy: str, asked: argparse.Namespace) -> list[Row]:
    problems = words.problems(ledger, ledger.LADDER[asked.level], asked.problems, asked.seed)
    most = ledger.LADDER[asked.level].thought_tokens + 64
    environment = machine.server_environment(machine.default_threads(machine.default_device()))
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for name in ("plain", "drafts"):
        log = asked.out / "logs" / f"{policy}-{name}.log"
        flags = _flags(policy, asked) + (_drafting(asked) if name == "drafts" else [])
        with running(RPC_MODULE, flags, log, environment) as server:
            prompts = [problem.prompt for problem in problems]
            found[name] = [asyncio.run(_ask(server.url, prompts, most, rpc)) for rpc in ({}, {"enabled": False})]
    rows = []
    for number, (problem, plain, plain_whole, drafted, whole) in enumerate(
        zip(problems, *found["plain"], *found["drafts"], strict=True)
    ):
        receipt, meta = drafted["meta_info"]["rpc"], drafted["meta_info"]
        first = min(asked.interval + asked.window, receipt["generated"]) if receipt["compressions"] else 0
        rest = len(drafted["output_ids"]) - 1 - first
        before = first / receipt["tokens_per_step"] if first else 0.0
        rows.append(
            Row(
                *(policy, asked.ratio, number),
                *(int(words.answer_of(each["output_ids"]) == problem.answer) for each in (drafted, plain, whole)),
                same=int(
                    (drafted["output_ids"], whole["output_ids"]) == (plain["output_ids"], plain_whole["output_ids"])
                ),
                compressions=receipt["compressions"],
                cuts=receipt["cuts"],
                tokens_before=first,
                steps_before=round(before, 3),
                tokens_after=rest,
                steps_after=round(meta["spec_verify_ct"] - before, 3),
                tokens_uncompressed=len(whole["output_ids"]) - 1,
                steps_uncompressed=whole["meta_info"]["spec_verify_ct"],
            )
        )
    return rows


def _flags(policy: str, asked: argparse.Namespace) -> list[str]:
    flags = ["--model-path", str(MODEL), "--dtype", "float32", "--reasoning-parser", "deepseek-r1"]
    flags += ["--rpc-policy", policy, "--rpc-interval", str(asked.interval), "--rpc-window", str(asked.window)]
    flags += ["--rpc-ratio", f"{asked.ratio:g}", "--max-total-tokens", str(asked.problems * 1024)]
    flags += ["--max-running-requests", str(asked.problems), "--rpc-query-slots", str(asked.problems)]
    return [*flags, "--rpc-host-backup-gb", "0", "--disable-overlap-schedule"]


def _drafting(asked: argparse.Namespace) -> list[str]:
    return [
        *("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", str(asked.draft)),
        *("--speculative-num-steps", str(asked.tokens - 1), "--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", str(asked.tokens)),
    ]


async def _ask(url: str, prompts: list[list[int]], tokens: int, rpc: dict[str, Any]) -> list[dict[str, Any]]:
    async def one(text: list[int]) -> dict[str, Any]:
        sampling = {"max_new_tokens": tokens, "temperature": 0, "custom_params": {"rpc": rpc}}
        async with http.post("/generate", json={"input_ids": text, "sampling_params": sampling}) as response:
            answer: dict[str, Any] = await response.json()
        if response.status != 200 or answer["meta_info"]["finish_reason"]["type"] == "abort":
            raise BenchError(f"a request of {len(text)} tokens failed: {str(answer)[:300]}")
        return answer

    once = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(url, connector=once, timeout=aiohttp.ClientTimeout(total=None)) as http:
        return await asyncio.gather(*map(one, prompts))


def summary(rows: Sequence[Row]) -> str:
    """A line per policy, as a Markdown table; tokens per step over all problems."""
    lines = [
        "| policy | c | right with drafts | without | uncompressed | tokens as without drafts | compressions | cuts "
        "| tokens per step before the first compression | after it | uncompressed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for policy, ratio in dict.fromkeys((row.policy, row.ratio) for row in rows):
        own = [row for row in rows if (row.policy, row.ratio) == (policy, ratio)]
        cells = [policy, f"{ratio:g}"]
        for name in ("right", "right_without", "right_uncompressed"):
            right = [float(getattr(row, name)) for row in own]
            cells.append(f"{fmean(right):.1%} ± {standard_error(right):.1%}")
        cells += [f"{sum(row.same for row in own)} of {len(own)}"]
        cells += [f"{sum(getattr(row, name) for row in own)}" for name in ("compressions", "cuts")]
        for part in ("before", "after", "uncompressed"):
            tokens, steps = (sum(getattr(row, f"{what}_{part}") for row in own) for what in ("tokens", "steps"))
            cells.append(f"{tokens / steps:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read(path: Path) -> list[Row]:
    """The rows of a file that `main` has written."""
    kinds: dict[str, Any] = {"str": str, "int": int, "float": float}
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**{f.name: kinds[str(f.type)](line[f.name]) for f in fields(Row)}) for line in csv.DictReader(file)]


def _write(rows: Sequence[Row], out: Path) -> None:
    with (out / "drafts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    (out / "summary.md").write_text(summary(rows), encoding="utf-8")
    (out / "conditions.json").write_text(json.dumps(machine.conditions(), indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m eval.bench.speculative", description=__doc__.partition("\n")[0])
    made.add_argument("--out", type=Path, required=True, help="folder of drafts.csv and summary.md")
    made.add_argument("--policies", default="rpc,peak")
    made.add_argument("--ratio", type=float, default=4)
    made.add_argument("--level", choices=sorted(ledger.LADDER), default="near")
    made.add_argument("--interval", type=int, default=64)
    made.add_argument("--window", type=int, default=32)
    made.add_argument("--tokens", type=int, default=4, help="n, that a step verifies")
    made.add_argument("--draft", type=Path, default=DRAFT)
    made.add_argument("--problems", type=int, default=24)
    made.add_argument("--seed", type=int, default=0)
    return made


if __name__ == "__main__":
    sys.exit(main())
