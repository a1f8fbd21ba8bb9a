"""What the server counted during a workload: numbers of /server_info's rpc block, and of /metrics where it is on."""

from __future__ import annotations

import re
from typing import Any

from eval.bench.server import Server

_LINE = re.compile(r"^(sglang:[\w:]+)(?:\{.*\})?\s+(\S+)(?:\s+\d+)?$")
#: Metrics worth a place in a row; the others are measured better by the client, or not by a number.
_KEPT = re.compile(r"^sglang:(rpc_\w+(?<!_created)|num_retracted_\w+_total)$")


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus text: name -> value, summed over labels; only sglang:rpc_* and counts of retractions."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and _KEPT.match(match[1]):
            found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def of_rpc_block(info: dict[str, Any]) -> dict[str, float]:
    """The numbers in /server_info's rpc block, summed over ranks, as rpc.NAME; nothing for a server without RPC."""
    found: dict[str, float] = {}
    for state in info.get("internal_states", []):
        for name, value in (state.get("rpc") or {}).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[f"rpc.{name}"] = found.get(f"rpc.{name}", 0) + value
    return found


def read(server: Server) -> dict[str, float]:
    """All of them, now."""
    status, text = server.call("/metrics")
    metrics = parse_metrics(text) if status == 200 and isinstance(text, str) else {}
    return {**of_rpc_block(server.info()), **metrics}


def change(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What a workload added; numbers that did not move are left out, gauges that moved show by how much."""
    return {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
