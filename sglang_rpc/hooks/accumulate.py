"""Adds up the attention of every decode step, for a policy that asks for it; it costs as much as attention again."""

from dataclasses import replace
from typing import Any

import torch

from sglang_rpc.contract.sglang.model import AttentionLayer, ModelRunner
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import AFTER, hook
from sglang_rpc.hooks.runtime import runtime_of
from sglang_rpc.hooks.step import attention_call, decodes, single_rows
from sglang_rpc.scoring.accumulated import accumulate
from sglang_rpc.types import KVLayer


def accumulating(layer: KVLayer) -> KVLayer:
    """`layer` with a buffer to add up in, 4 bytes a slot and KV head."""
    buffer = torch.zeros(*layer.keys.shape[:2], 1, dtype=torch.float32, device=layer.keys.device)
    return replace(layer, accumulated=buffer)


class Accumulate:
    """A forward hook of one attention layer. It runs after the attention, when the new keys are in the pool."""

    def __init__(self, model_runner: ModelRunner, layer: KVLayer):
        self.req_to_token = model_runner.req_to_token_pool.req_to_token
        self.layer = layer

    def __call__(self, layer: AttentionLayer, args: tuple[Any, ...], kwargs: dict[str, Any], _output: object) -> None:
        """Add up the step's attention in the layer's `accumulated`; slots written in this step begin anew."""
        forward_batch, queries = attention_call(args, kwargs)
        if forward_batch.out_cache_loc is None:
            return
        assert self.layer.accumulated is not None
        self.layer.accumulated[forward_batch.out_cache_loc] = 0.0  # these slots were somebody else's
        decode, single = decodes(forward_batch), single_rows(forward_batch)
        if not decode and single is None:
            return
        queries = queries.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        rows, lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        if decode:
            queries = queries[: len(rows)]  # tokens may be padded
        elif single is not None:
            queries, rows, lengths = queries[single.tokens], rows[single.rows], lengths[single.rows]
        slots = self.req_to_token[rows, : int(forward_batch.seq_lens_cpu.max())]
        accumulate(self.layer, queries, slots, lengths)


@hook(
    AFTER,
    "sglang.srt.managers.scheduler.Scheduler._apply_war_barrier",
    "policies that read rows in every layer read them later than SGLang's barrier waits for",
)
def wait_for_late_reads(_result: object, scheduler: Scheduler) -> None:
    """AFTER Scheduler._apply_war_barrier, right after each launch under overlap, on the scheduler's stream.

    The barrier orders the scheduler's next writes into rows after the forward's own reads of rows, wherever the
    attention backend says that these end. An eager step of the backends that RPC works with says nothing, and SGLang
    then waits for the whole forward; but on AMD GPUs there is no barrier, and a backend may promise more one day.
    `Accumulate` reads rows in each layer. The row of a request that has just ended may by then be another's, and
    attention would be added up in that one's slots.

    So the scheduler's stream waits for the whole forward. The host does not, and the next forward starts no later: it
    comes after this one on the same stream.
    """
    runtime = runtime_of(scheduler)
    if runtime is not None and runtime.every_step:
        runtime.fence()
