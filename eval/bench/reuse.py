"""`python -m eval.bench.reuse --out DIR`: what reuse of compressed thoughts gives, against SGLang and RPC without it.

Four servers run beside each other, of which one is asked at a time: a repetition asks all, one right after the other,
so that ratios are of neighbours on a machine whose speed drifts. The loads are `reuse_loads`'.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.bench import machine, reuse_loads, shapes
from eval.bench.arms import RPC_MODULE, STOCK_MODULE
from eval.bench.errors import BenchError
from eval.bench.reuse_loads import Row, Sizes
from eval.bench.server import Server, running
from eval.bench.table import as_text
from eval.bench.workloads import RPC

ARMS = ("stock", "rpc", "share", "continue")
#: Of each shape: what is asked, and P, R and c.
PRESETS = {
    "tiny": (Sizes(64, 900, 8, 120, 5, 200, 32, 64, 12, 4), RPC(128, 16, 4)),
    "smollm2": (Sizes(32, 320, 8, 16, 4, 48, 8, 24, 6, 4), RPC(64, 8, 4)),
}
#: What a ratio is taken of: each arm's number to the same repetition's of stock.
COMPARED = ("prefilled_tokens", "first_token_ms", "tok_s", "kv_peak")


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured and written; 1: not so, and the last line says why."""
    asked = _parser().parse_args(argv)
    try:
        rows = _measure(asked)
    except BenchError as error:
        print(f"reuse: {error}", file=sys.stderr)
        return 1
    table = summary(rows)
    (asked.out / "summary.md").write_text(table)
    print(table)
    return 0


def _measure(asked: argparse.Namespace) -> list[dict[str, str]]:
    sizes, rpc = PRESETS[asked.shape]
    model = shapes.of_shape(asked.shape, asked.out / "model")
    shapes.write(model)
    rows: list[dict[str, str]] = []
    conditions = machine.conditions()
    for pool_name, pool in pools(sizes).items():
        with contextlib.ExitStack() as servers:
            by_arm = {arm: servers.enter_context(_server(arm, rpc, model, pool, asked, pool_name)) for arm in ARMS}
            for server in by_arm.values():  # first calls allocate and compile
                _ask(server, "rollout", _warm_up(sizes), model, "warm-up")
            for repetition in range(asked.repetitions):
                for name in asked.loads:
                    for place in range(len(ARMS)):  # another first in each repetition
                        arm = ARMS[(place + repetition) % len(ARMS)]
                        by_arm[arm].flush()
                        measured = _ask(by_arm[arm], name, sizes, model, f"{asked.seed}/{repetition}")
                        key = {"load": name, "pool": pool_name, "pool_tokens": pool}
                        key |= {"arm": arm, "repetition": repetition}
                        settings = {**vars(sizes), **vars(rpc), "model": model.label}
                        row = as_text({**key, **measured, **settings, **conditions})
                        rows.append(row)
                        print(_line(row), flush=True)
                        _write(asked.out / "reuse.csv", rows)
    return rows


def pools(sizes: Sizes) -> dict[str, int]:
    """Slots of an ample pool, and of one of a quarter of what the widest load holds, or the longest text."""
    return {"ample": sizes.widest * 5 // 4, "quarter": max(sizes.widest // 4, sizes.longest + 64)}


def _server(
    arm: str, rpc: RPC, model: shapes.Model, pool: int, asked: argparse.Namespace, pool_name: str
) -> contextlib.AbstractContextManager[Server]:
    flags = ["--model-path", model.path, "--skip-tokenizer-init", "--load-format", "dummy", "--dtype", "float32"]
    flags += ["--device", machine.default_device(), "--max-total-tokens", str(pool), "--random-seed", "0"]
    flags += ["--sleep-on-idle", "--enable-cache-report", "--max-running-requests", "64"]
    if arm != "stock":
        flags += [*rpc.flags(), "--rpc-reuse", "off" if arm == "rpc" else arm]
    module, log = STOCK_MODULE if arm == "stock" else RPC_MODULE, asked.out / "logs" / f"{pool_name}-{arm}.log"
    return running(module, flags, log, machine.server_environment(machine.default_threads(machine.default_device())))


def _warm_up(sizes: Sizes) -> Sizes:
    return Sizes(**{**vars(sizes), "chunk": sizes.chunk, "chunks": 4, "at_once": 2})


def _ask(server: Server, name: str, sizes: Sizes, model: shapes.Model, seed: str) -> Row:
    return asyncio.run(reuse_loads.measure(server.url, name, sizes, model.vocab_size, f"{seed}/{name}"))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _line(row: dict[str, str]) -> str:
    numbers = "  ".join(f"{name} {float(row[name] or 'nan'):.5g}" for name in COMPARED)
    return f"{row['load']:<8} {row['pool']:<8} {row['arm']:<9} repetition {row['repetition']}: {numbers}"


def summary(rows: Sequence[dict[str, str]]) -> str:
    """Medians of each arm, and of its ratios to stock in the same repetition, as a Markdown table."""
    head = ["load", "pool", "arm", *(f"{name} (to stock)" for name in COMPARED), "reused", "compressions"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for load, pool in dict.fromkeys((row["load"], row["pool"]) for row in rows):
        for arm in ARMS:
            mine = [row for row in rows if (row["load"], row["pool"], row["arm"]) == (load, pool, arm)]
            if not mine:
                continue
            cells: list[Any] = [_cell(rows, mine, name) for name in COMPARED]
            more = [f"{statistics.median(float(row[name]) for row in mine):g}" for name in _COUNTS]
            lines.append("| " + " | ".join([load, pool, arm, *cells, *more]) + " |")
    return "\n".join(lines) + "\n"


_COUNTS = ("reused_requests", "compressions")


def _cell(rows: Sequence[dict[str, str]], mine: Sequence[dict[str, str]], name: str) -> str:
    ratios = []
    for row in mine:
        same = {key: row[key] for key in ("load", "pool", "repetition")} | {"arm": "stock"}
        stock = next((each for each in rows if all(each[key] == value for key, value in same.items())), None)
        if stock is not None and row[name] and stock[name] and float(stock[name]):
            ratios.append(float(row[name]) / float(stock[name]))
    read = [float(row[name]) for row in mine if row[name]]
    value = f"{statistics.median(read):.4g}" if read else ""
    return f"{value} ({statistics.median(ratios):.2f})" if ratios else value


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m eval.bench.reuse", description=__doc__)
    made.add_argument("--out", type=Path, required=True, help="folder of reuse.csv and summary.md")
    made.add_argument("--shape", choices=sorted(PRESETS), default="tiny", help="built-in, weights made up")
    made.add_argument("--loads", nargs="+", choices=sorted(reuse_loads.LOADS), default=list(reuse_loads.LOADS))
    made.add_argument("--repetitions", type=int, default=3)
    made.add_argument("--seed", type=int, default=0)
    return made


if __name__ == "__main__":
    sys.exit(main())
