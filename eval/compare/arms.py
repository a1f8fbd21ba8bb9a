"""What is compared: a policy at an interval, a window, a ratio and a floor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_rpc.policy.resolve import NAMES

FULL = "full"
#: What every comparison has beside the full KV cache: chance, and the newest entries.
BASELINES = ("random", "streaming")


def label(policy: str) -> str:
    """The policy's name in files and tables: of `package.module:function` the last two parts.

    It says nothing of the other policies, so that a folder may get more of them.
    """
    module, _, function = policy.partition(":")
    last = module.rpartition(".")[2]
    short = policy if not function else function if function == last else f"{last}-{function}"
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "-", short).strip("-.") or "policy"
    return re.sub(r"\W+", "-", policy) if policy not in NAMES and safe in (*NAMES, FULL) else safe


@dataclass(frozen=True)
class Arm:
    policy: str  #: as --rpc-policy takes it, or `full`: nothing is evicted
    interval: int
    window: int
    ratio: float
    min_kept: int = 0

    @property
    def label(self) -> str:
        return label(self.policy)

    @property
    def name(self) -> str:
        if self.policy == FULL:
            return FULL
        floor = f"-F{self.min_kept}" if self.min_kept else ""
        return f"{self.label}-P{self.interval}-R{self.window}-c{self.ratio:g}{floor}"

    @property
    def rpc(self) -> dict[str, Any]:
        """custom_params.rpc of its requests."""
        if self.policy == FULL:
            return {"enabled": False}
        floor = {"min_kept": self.min_kept} if self.min_kept else {}
        return {"interval": self.interval, "window": self.window, "ratio": self.ratio, **floor}


def arms(
    policies: Sequence[str],
    intervals: Sequence[int],
    window: int,
    ratios: Sequence[float],
    min_kept: Sequence[int] = (0,),
) -> list[Arm]:
    """Full first; a policy's arms stand together."""
    made = [
        Arm(policy, interval, window, ratio, least)
        for policy in policies
        for interval in intervals
        for ratio in ratios
        for least in min_kept
    ]
    return [Arm(FULL, max(intervals), window, min(ratios)), *made]


def server_flags(served: Sequence[Arm]) -> list[str]:
    """Of a server for several arms: of its own, it has the first's interval, window and ratio, and the least floor.

    Each request says what else its arm has. One without a floor says nothing, so the server must have none then.
    """
    first = served[0]
    return [
        *("--rpc-interval", str(first.interval), "--rpc-window", str(first.window)),
        *("--rpc-ratio", f"{first.ratio:g}", "--rpc-min-kept", str(min(arm.min_kept for arm in served))),
    ]
