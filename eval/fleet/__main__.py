"""`python -m eval.fleet --out DIR`: replicas with RPC on and off, simulated; see --help and eval/README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eval.fleet import plot, report
from eval.fleet.fleet import ROUTERS, simulate
from eval.fleet.load import Load
from eval.fleet.server import Server, Step
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.budget import Budget

#: Stated, not measured: QwQ-32B in bfloat16 on one GPU of 141 GB and 4.8 TB/s, of which 70 % is reached. A step reads
#: 65.5 GB of weights and 262144 bytes of each KV entry. A token's prefill takes 65.6 GFLOP at half of 989 TFLOP/s.
STATED = Step(fixed=19.5e-3, request=2e-5, entry=78e-9, prefill=1e-2, token=1.3e-4, compression=2e-3)
#: What such a GPU has room for beside the weights, at 88 % of its memory.
STATED_POOL = 220_000


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m eval.fleet",
        description="A fleet of replicas, RPC on and off, simulated from the arithmetic of admission and a step time.",
        epilog="Defaults: the shape of QwQ-32B on one GPU of 141 GB, with a stated step time.",
        allow_abbrev=False,
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="fleet.csv and fleet.png, .svg")
    grid = made.add_argument_group("simulated", "every combination, with RPC off and on")
    grid.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N")
    grid.add_argument("--output-tokens", type=float, nargs="+", default=[8192.0], metavar="T", help="mean")
    grid.add_argument("--routers", nargs="+", default=["least-requests"], choices=ROUTERS, metavar="ROUTER")
    load = made.add_argument_group("load")
    offered = load.add_mutually_exclusive_group()
    offered.add_argument("--rate", type=float, metavar="R", help="requests/s of the fleet, Poisson; inf: all at once")
    offered.add_argument("--clients", type=int, metavar="C", help="closed loop")
    load.add_argument("--jobs", type=int, default=2000, metavar="N", help="requests in all (default: 2000)")
    load.add_argument("--prompt-tokens", type=int, default=512, metavar="T")
    load.add_argument("--shared-tokens", type=int, default=0, metavar="T", help="of the prompt, common to a group")
    load.add_argument("--groups", type=int, default=1, metavar="G")
    load.add_argument("--spread", type=float, default=0.5, help="of output lengths: standard deviation / mean")
    load.add_argument("--longest", type=int, default=32768, metavar="T", help="no output is longer")
    load.add_argument("--limit", type=int, metavar="T", help="max_new_tokens, lengths unknown (default: known)")
    load.add_argument("--seed", type=int, default=0)
    one = made.add_argument_group("one replica")
    one.add_argument("--pool-tokens", type=int, default=STATED_POOL, metavar="T")
    one.add_argument("--max-running", type=int, default=256, metavar="N")
    one.add_argument("--rpc-interval", type=int, default=1024, metavar="P")
    one.add_argument("--rpc-window", type=int, default=32, metavar="R")
    one.add_argument("--rpc-ratio", type=float, default=4, metavar="C")
    for name, value in asdict(STATED).items():
        one.add_argument(f"--{name}-s", type=float, default=value, metavar="S", help=f"Step.{name} (default: {value})")
    return made


def arms(given: argparse.Namespace) -> dict[str, Server]:
    """SGLang's server and ours, with the same pool and the same steps. Raises ConfigError."""
    config = RPCConfig(interval=given.rpc_interval, window=given.rpc_window, ratio=given.rpc_ratio)
    step = Step(**{name: getattr(given, f"{name}_s") for name in asdict(STATED)})
    off = Server(given.pool_tokens, step, max_running=given.max_running)
    return {"off": off, "rpc": replace(off, budget=Budget.of(config), ratio=config.ratio, forecast=True)}


def rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per combination and arm. Raises ValueError or ConfigError."""
    servers = arms(given)
    rate = 1.0 if given.rate is None and given.clients is None else given.rate
    for output in given.output_tokens:
        load = Load(
            *(given.jobs, given.prompt_tokens, output, given.spread, given.longest, given.limit, rate, given.clients),
            shared=given.shared_tokens,
            groups=given.groups,
        )
        jobs = load.draw(given.seed)
        for router in given.routers:
            for replicas in given.replicas:
                for arm, server in servers.items():
                    outcome = simulate(server, replicas, ROUTERS[router], jobs, load.clients)
                    key = {"arm": arm, "output_tokens": output, "router": router, "replicas": replicas}
                    yield {**key, **report.measures(outcome, server.pool), **report.settings(server, load, given.seed)}


def main(argv: list[str] | None = None) -> int:
    """Writes the table and the plot. 1: what was asked for is not possible, and why."""
    given = parser().parse_args(argv)
    found = []
    try:
        for row in rows(given):
            found.append(row)
            print(report.line(row), flush=True)
    except (ValueError, ConfigError) as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    report.write(given.out / "fleet.csv", found)
    plot.draw(given.out / "fleet.csv")
    print(f"\n{report.left_out()}\n{given.out}: fleet.csv and its plot")
    return 0


if __name__ == "__main__":
    sys.exit(main())
