"""The arms: which server each is, and what its requests carry.

stock        SGLang's own server, its default flags and no hook
constrained  stock without radix cache and overlap scheduling: what other decode-time KV evictors need switched off
off          this package's server, --disable-rpc
rpc-off      this package's server with RPC on; every request asks to be left alone
rpc          this package's server with RPC on
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from typing import Any

from eval.bench.errors import BenchError
from eval.bench.workloads import RPC

STOCK_MODULE = "eval.bench.stock_server"
RPC_MODULE = "sglang_rpc.launch_server"
BUILT_IN = ("stock", "constrained", "off", "rpc-off", "rpc")


@dataclass(frozen=True)
class Arm:
    name: str
    base: str  #: the built-in arm it is, or was made from
    module: str  #: run with python -m
    flags: tuple[str, ...] = ()  #: beside those that every arm gets
    rpc: RPC | None = None  #: None: the server runs without RPC
    custom_params: dict[str, Any] | None = field(default=None, hash=False)  #: sent with every request

    @property
    def compresses(self) -> bool:
        return self.rpc is not None and self.custom_params is None


def built_in(name: str, rpc: RPC, rpc_flags: tuple[str, ...] = ()) -> Arm:
    """Raises BenchError for an unknown name."""
    rpc_server = Arm(name, name, RPC_MODULE, (*rpc.flags(), *rpc_flags), rpc)
    arms = {
        "stock": Arm(name, name, STOCK_MODULE),
        "constrained": Arm(name, name, STOCK_MODULE, ("--disable-radix-cache", "--disable-overlap-schedule")),
        "off": Arm(name, name, RPC_MODULE, ("--disable-rpc",)),
        "rpc-off": replace(rpc_server, custom_params={"rpc": {"enabled": False}}),
        "rpc": rpc_server,
    }
    if name not in arms:
        raise BenchError(
            f"unknown arm {name!r}; the arms are {', '.join(BUILT_IN)}, and --arm NAME='FLAGS' makes another"
        )
    return arms[name]


def from_text(text: str, rpc: RPC, rpc_flags: tuple[str, ...] = ()) -> Arm:
    """`NAME=FLAGS`: the rpc arm with more flags; `NAME@BASE=FLAGS`: another built-in arm with more flags."""
    match = re.fullmatch(r"([\w.-]+)(?:@([\w-]+))?=(.*)", text, re.DOTALL)
    if match is None:
        raise BenchError(f"--arm must be NAME='FLAGS' or NAME@BASE='FLAGS', got {text!r}")
    name, base, flags = match.groups()
    if name in BUILT_IN:
        raise BenchError(f"--arm {name}: the name is taken by a built-in arm; choose another")
    made = built_in(base or "rpc", rpc, rpc_flags)
    more = split_flags(flags, f"--arm {name}")
    return replace(made, name=name, base=made.base, flags=(*made.flags, *more), rpc=_overridden(made.rpc, more))


def split_flags(text: str, where: str) -> tuple[str, ...]:
    """As a shell splits them. Raises BenchError."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise BenchError(f"{where}: {text!r} cannot be split into flags: {error}") from error


def _overridden(rpc: RPC | None, flags: tuple[str, ...]) -> RPC | None:
    """The P, R, c and scope that flags added later set, so that a row says what its server ran with."""
    if rpc is None:
        return None
    kinds = {"interval": int, "window": int, "ratio": float, "scope": str}
    given: dict[str, Any] = {}
    for position, flag in enumerate(flags):
        name, equals, value = flag.removeprefix("--rpc-").partition("=")
        if not flag.startswith("--rpc-") or name not in kinds:
            continue
        if not equals:
            value = flags[position + 1] if position + 1 < len(flags) else ""
        try:
            given[name] = kinds[name](value)
        except ValueError as error:
            raise BenchError(f"--rpc-{name} must be a number, got {value!r}") from error
    return replace(rpc, **given)
