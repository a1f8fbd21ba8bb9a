"""The rules between `rpc` and `peak`, one change at a time: `python -m eval.compare.ablation` lists them.

The list is a value of `--policies` of eval.compare. They are policies as a package of one's own offers them, and run in
the kernels where those can run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.base import Policy, attention_policy
from sglang_rpc.policy.peak import RULE as PEAK
from sglang_rpc.types import ScoreRule

SUM = ScoreRule(softmax="candidates", over_queries="sum", over_heads="sum", value_power=0)


@dataclass(frozen=True)
class Narrow(Policy):
    """Pools over three neighbours, whatever --rpc-kernel-size says."""

    def pooling_in(self, config: RPCConfig) -> tuple[int, str]:
        """Kernel size and kind of the pooling."""
        return 3, "avg"


# On the way from rpc to peak, each with what those before it have.
#: No pooling; --rpc-selector says whom it asks, as in `rpc`.
kernel_1 = attention_policy("kernel_1", SUM, selector="config")
#: Each of the newest R queries once.
each_once = attention_policy("each_once", SUM)
#: A query's weights add up to 1 over all that it sees.
all_visible = attention_policy("all_visible", replace(SUM, softmax="visible"))
#: The maximum over queries, not the sum. Times the value's norm it is `peak`.
maximum = attention_policy("maximum", replace(SUM, softmax="visible", over_queries="max"))

# One step back from peak.
pool_3 = Narrow(**vars(attention_policy("pool_3", PEAK)))
candidates_only = attention_policy("candidates_only", replace(PEAK, softmax="candidates"))
summed = attention_policy("summed", replace(PEAK, over_queries="sum"))

#: In the order of the table.
ROWS = (
    "rpc",
    *(f"eval.compare.ablation:{name}" for name in ("kernel_1", "each_once", "all_visible", "maximum")),
    "peak",
    *(f"eval.compare.ablation:{name}" for name in ("pool_3", "candidates_only", "summed")),
    *(f"sglang_rpc.policy.peak:{name}" for name in ("grouped", "squares")),
)

if __name__ == "__main__":
    print(",".join(ROWS))
