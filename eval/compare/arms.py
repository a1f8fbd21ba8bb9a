"""What is compared: a policy at an interval, a window and a ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FULL = "full"


@dataclass(frozen=True)
class Arm:
    policy: str  #: or `full`: nothing is evicted
    interval: int
    window: int
    ratio: float

    @property
    def name(self) -> str:
        return FULL if self.policy == FULL else f"{self.policy}-P{self.interval}-R{self.window}-c{self.ratio:g}"

    @property
    def rpc(self) -> dict[str, Any]:
        """custom_params.rpc of its requests."""
        if self.policy == FULL:
            return {"enabled": False}
        return {"interval": self.interval, "window": self.window, "ratio": self.ratio}


def arms(policies: Sequence[str], intervals: Sequence[int], window: int, ratios: Sequence[float]) -> list[Arm]:
    """Full first; a policy's arms stand together."""
    made = [Arm(p, interval, window, ratio) for p in policies for interval in intervals for ratio in ratios]
    return [Arm(FULL, max(intervals), window, min(ratios)), *made]
