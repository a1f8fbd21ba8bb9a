"""`python -m eval.bench.reuse_accuracy --out DIR`: whether the small reasoner still solves what it was interrupted at.

Each problem is solved once without a cut. Then its thought is generated up to a share of that one's tokens, and ended;
prompt and thought are sent again as ids, and it goes on: taken over with `continue`, with `share`, or prefilled whole
(`off`). All problems are asked at once, greedily, and compared with the uncut run problem by
problem. The same command goes on where it was stopped, after the last policy and ratio that is whole.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import aiohttp

from eval.accuracy.statistics import paired, sign_flip, standard_error
from eval.bench import machine
from eval.bench.arms import RPC_MODULE
from eval.bench.errors import BenchError
from eval.bench.server import ROOT, Server, running
from eval.reasoner import ledger, words
from eval.reasoner.words import END_THINK, Problem

MODES = ("continue", "share", "off")
UNCUT = "uncut"
MODEL = ROOT / "eval" / "reasoner" / "model"


@dataclass(frozen=True)
class Row:
    """One problem, solved."""

    policy: str
    ratio: float
    cut: float  #: share of the uncut thought's tokens, after which it was ended; 0: it was not
    mode: str
    problem: int
    right: int
    same: int  #: whether its ids are those of the uncut run
    prefilled: int  #: tokens, of the request that goes on
    reused: int  #: tokens taken over compressed
    compressions: int  #: of both requests


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured and written; 1: not so, and the last line says why."""
    asked = _parser().parse_args(argv)
    there = asked.out / "cuts.csv"
    rows = read(there) if there.exists() else []
    try:
        for policy in asked.policies:
            left = [ratio for ratio in asked.ratios if (policy, ratio) not in {(row.policy, row.ratio) for row in rows}]
            with _server(policy, asked) if left else contextlib.nullcontext() as server:
                for ratio in left:
                    rows += asyncio.run(_measure(server, policy, ratio, asked))
                    _write(rows, asked.out)
    except (BenchError, aiohttp.ClientError) as error:
        print(f"reuse_accuracy: {error}", file=sys.stderr)
        return 1
    print(summary(rows))
    return 0


def _server(policy: str, asked: argparse.Namespace) -> Any:
    flags = ["--model-path", str(MODEL), "--dtype", "float32", "--reasoning-parser", "deepseek-r1"]
    flags += ["--rpc-policy", policy, "--rpc-interval", str(asked.interval), "--rpc-window", str(asked.window)]
    flags += ["--rpc-ratio", f"{min(asked.ratios):g}", "--rpc-reuse", "continue", "--enable-cache-report"]
    flags += ["--max-total-tokens", str(asked.problems * 2048), "--max-running-requests", str(asked.problems)]
    flags += ["--rpc-query-slots", str(asked.problems), "--rpc-host-backup-gb", "0"]
    environment = machine.server_environment(machine.default_threads(machine.default_device()))
    return running(RPC_MODULE, flags, asked.out / "logs" / f"{policy}.log", environment)


async def _measure(server: Server, policy: str, ratio: float, asked: argparse.Namespace) -> list[Row]:
    """All cuts and modes of one policy and ratio. Raises BenchError."""
    level = ledger.LADDER[asked.level]
    problems = words.problems(ledger, level, asked.problems, asked.seed)
    most = level.thought_tokens + 64
    rows: list[Row] = []

    # A connection for each: those that wait for the slowest answer may be closed meanwhile.
    once = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(server.url, connector=once, timeout=aiohttp.ClientTimeout(total=None)) as http:

        async def ask(texts: Iterable[list[int]], tokens: Iterable[int], mode: str) -> list[dict[str, Any]]:
            rpc = {"ratio": ratio, "reuse": mode}
            pairs = zip(texts, tokens, strict=True)
            return await asyncio.gather(*(_generate(http, text, count, rpc) for text, count in pairs))

        def note(
            cut: float, mode: str, outputs: list[list[int]], answers: list[dict[str, Any]], before: list[int]
        ) -> None:
            for number, (output, answer, done) in enumerate(zip(outputs, answers, before, strict=True)):
                meta, receipt = answer["meta_info"], answer["meta_info"]["rpc"]
                rows.append(
                    Row(
                        *(policy, ratio, cut, mode, number),
                        right=int(words.answer_of(output) == problems[number].answer),
                        same=int(output == whole[number]),
                        prefilled=meta["prompt_tokens"] - meta["cached_tokens"],
                        reused=receipt["reused"] if mode != "off" and cut else 0,
                        compressions=receipt["compressions"] + done,
                    )
                )
            told = rows[-len(problems) :]
            right, same = fmean(row.right for row in told), fmean(row.same for row in told)
            print(f"{policy} c={ratio:g} {mode} at {cut:g}: {right:.3f} right, {same:.3f} as uncut", flush=True)

        prompts = [problem.prompt for problem in problems]
        uncut = await ask(prompts, [most] * len(problems), "off")
        whole = [answer["output_ids"] for answer in uncut]
        note(0, UNCUT, whole, uncut, [0] * len(problems))
        for cut in asked.cuts:
            server.flush()
            at = [max(1, int(cut * _thought(output, problem))) for output, problem in zip(whole, problems, strict=True)]
            begun = await ask(prompts, at, "continue")
            texts = [prompt + answer["output_ids"] for prompt, answer in zip(prompts, begun, strict=True)]
            done = [answer["meta_info"]["rpc"]["compressions"] for answer in begun]
            for mode in MODES:
                answers = await ask(texts, [most - tokens for tokens in at], mode)
                outputs = [b["output_ids"] + a["output_ids"] for b, a in zip(begun, answers, strict=True)]
                note(cut, mode, outputs, answers, done)
    return rows


def _thought(output: list[int], problem: Problem) -> int:
    """Tokens of the thought; of one that never ends, those of the right one."""
    return output.index(END_THINK) if END_THINK in output else len(problem.thoughts)


async def _generate(http: aiohttp.ClientSession, text: list[int], tokens: int, rpc: dict[str, Any]) -> dict[str, Any]:
    sampling = {"max_new_tokens": tokens, "temperature": 0, "custom_params": {"rpc": rpc}}
    async with http.post("/generate", json={"input_ids": text, "sampling_params": sampling}) as response:
        answer: dict[str, Any] = await response.json()
    if response.status != 200 or answer["meta_info"]["finish_reason"]["type"] == "abort":
        raise BenchError(f"a request of {len(text)} + {tokens} tokens failed: {str(answer)[:300]}")
    return answer


def summary(rows: Sequence[Row]) -> str:
    """A line per policy, ratio, cut and mode, as a Markdown table; differences are to the uncut run, in pairs."""
    lines = [
        "| policy | c | thought ended at | goes on with | right | to uncut | p | ids as uncut | tokens prefilled "
        "| tokens taken over | compressions |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, float, float, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.policy, row.ratio, row.cut, row.mode), []).append(row)
    for (policy, ratio, cut, mode), own in groups.items():
        right = [float(row.right) for row in own]
        cells = [policy, f"{ratio:g}", f"{cut:.0%}" if cut else "", mode]
        cells += [f"{fmean(right):.1%} ± {standard_error(right):.1%}", *_to_uncut(own, groups[policy, ratio, 0, UNCUT])]
        cells += [f"{fmean(row.same for row in own):.1%}"] if cut else [""]
        cells += [f"{fmean(getattr(row, name) for row in own):.4g}" for name in ("prefilled", "reused", "compressions")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _to_uncut(own: Sequence[Row], uncut: Sequence[Row]) -> list[str]:
    if own[0].mode == UNCUT:
        return ["", ""]
    ours, theirs = ({str(row.problem): row.right for row in rows} for rows in (own, uncut))
    difference, error, _ = paired(ours, theirs)
    chance = sign_flip([ours[name] - theirs[name] for name in ours])
    return [f"{100 * difference:+.1f} ± {100 * error:.1f} %", f"{chance:.2g}"]


def read(path: Path) -> list[Row]:
    """The rows of a file that `main` has written."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(**{f.name: _KINDS[str(f.type)](line[f.name]) for f in fields(Row)}) for line in csv.DictReader(file)
        ]


_KINDS: dict[str, Any] = {"str": str, "int": int, "float": float}


def _write(rows: Sequence[Row], out: Path) -> None:
    with (out / "cuts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    (out / "summary.md").write_text(summary(rows), encoding="utf-8")
    (out / "conditions.json").write_text(json.dumps(machine.conditions(), indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    def several(kind: type) -> Any:
        return lambda text: [kind(part) for part in text.split(",")]

    made = argparse.ArgumentParser(prog="python -m eval.bench.reuse_accuracy", description=__doc__.partition("\n")[0])
    made.add_argument("--out", type=Path, required=True, help="folder of cuts.csv and summary.md")
    made.add_argument("--policies", type=several(str), default="rpc,peak")
    made.add_argument("--ratios", type=several(float), default="4,8,12")
    made.add_argument("--cuts", type=several(float), default="0.25,0.5,0.75", help="shares of the thought")
    made.add_argument("--level", choices=sorted(ledger.LADDER), default="near")
    made.add_argument("--interval", type=int, default=64)
    made.add_argument("--window", type=int, default=32)
    made.add_argument("--problems", type=int, default=100)
    made.add_argument("--seed", type=int, default=0)
    return made


if __name__ == "__main__":
    sys.exit(main())
