"""`python -m tests.engine.checked FLAGS`: RPC's server, whose scheduler checks its pool before each step of a decode
server too. SGLang's strict check stands in no such loop."""

from __future__ import annotations

from sglang_rpc import launch_server
from sglang_rpc.startup import process
from tests.engine import checked


def run_with_rpc(run_scheduler_process_func, *args, **kwargs):
    """In the child: RPC's hooks, then the check below all of them."""
    process._prepare_scheduler(*args, **kwargs)
    from sglang.srt.disaggregation.decode import SchedulerDisaggregationDecodeMixin as Decode

    plan = Decode.get_next_disagg_decode_batch_to_run

    def planned(self, running_batch):
        check_pool(self, running_batch)
        return plan(self, running_batch)

    Decode.get_next_disagg_decode_batch_to_run = planned
    return run_scheduler_process_func(*args, **kwargs)


def check_pool(scheduler, running_batch) -> None:
    """Raises AssertionError unless every slot is free, the tree's, or of a request that is known.

    And two rows never share a slot, but for the prompt's: what the tree owns of it.
    """
    from sglang.srt.managers.scheduler_components.pool_stats_observer import kv_private_tokens

    transfer = scheduler.disagg_decode_transfer_queue
    held_back = [each[0].req for each in transfer._deferred_releases]
    coming = [each.req for each in transfer.queue]
    reqs = {*running_batch.reqs, *scheduler.waiting_queue, *coming, *held_back}
    for batch in [scheduler.last_batch, *(queued for queued, _ in scheduler.result_queue)]:
        reqs.update([] if batch is None else batch.reqs)
    holding = [req for req in reqs if req.kv.holds_kv]
    held = sum(kv_private_tokens(req.kv, scheduler.page_size) for req in holding)
    leak, message = scheduler.invariant_checker._check_full_pool(
        scheduler.pool_stats_observer.get_pool_stats(), uncached=held
    )
    assert not leak, message
    table, seen = scheduler.req_to_token_pool.req_to_token, set()
    for req in holding:
        own = table[req.kv.req_pool_idx, req.kv.cache_protected_len : req.kv.kv_allocated_len].tolist()
        assert len(seen) + len(own) == len(seen.union(own)), f"{req.rid} shares slots"
        seen.update(own)


if __name__ == "__main__":
    process.run_with_rpc = checked.run_with_rpc  # by the name that a child can import
    launch_server.main()
