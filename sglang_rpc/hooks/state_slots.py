"""How many recurrent states a server has room for, and whether they run out before the KV pool does."""

import logging
from typing import cast

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.layers import hybrid_pool
from sglang_rpc.contract.sglang.memory import HybridReqToTokenPool
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.policy.budget import Budget

logger = logging.getLogger(__name__)


def state_slots(scheduler: Scheduler, config: RPCConfig) -> str:
    """Part of the log line at start-up; "" for a model without recurrent layers.

    Warns if requests, compressed, can never fill the KV pool before all states are taken.
    """
    if hybrid_pool(scheduler.token_to_kv_pool_allocator) is None:
        return ""
    pool = cast("HybridReqToTokenPool", scheduler.req_to_token_pool)
    states, requests = pool.mamba_allocator.size, pool.size
    share = scheduler.max_total_num_tokens // requests
    asked = scheduler.server_args.max_running_requests
    if (asked is None or asked > requests) and Budget.of(config).peak(scheduler.model_config.context_len) <= share:
        logger.warning(
            "RPC: recurrent states bind before KV does: %d state slots let %d requests run, and compressed these hold "
            "less than the %d KV entries that there are for each; raise --mamba-full-memory-ratio or "
            "--max-mamba-cache-size",
            states, requests, share,
        )  # fmt: skip
    return (
        f"; {states} recurrent state slots: at most {requests} requests run, and states bind before KV does while "
        f"these hold less than {share} entries each"
    )
