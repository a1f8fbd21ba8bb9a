"""Looks inside the scheduler process of a test engine: adds a method that `Engine.collective_rpc` can call."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from pathlib import Path

import torch

from sglang_rpc.contract.targets import hooks_in
from sglang_rpc.contract.windows import full_slots_free, has_own_windows
from sglang_rpc.hooks.install import install
from sglang_rpc.startup.cpu import drafts, idle_ranks, window_reads
from tests.engine import fresh_queries

#: Set, the tree loses every recurrent state that no running request holds, whenever a retracted request waits.
EVICT_STATES = "SGLANG_RPC_TEST_EVICT_STATES"

_most_running = 0  #: the largest decode batch so far
_most_held = 0  #: slots neither free nor evictable, in any step since `spy_on_peak` was last asked
_decodes = {"graph": 0, "eager": 0}  #: decode steps so far
_launched_ahead = 0  #: of these, steps that were launched while a result was in flight
_decodes_beside_waiting = 0  #: of these, steps during which a request waited to be admitted


def run_scheduler_process(*args, **kwargs):
    """As SGLang's, with the spy's method on the scheduler."""
    from sglang.srt.managers import scheduler

    install(hooks_in(idle_ranks, window_reads))  # without RPC too, where SGLang would crash, or read the wrong slots
    if args[0].speculative_algorithm is not None:
        install(hooks_in(drafts))
    fresh_queries.watch()
    scheduler.Scheduler.spy = _spy
    scheduler.Scheduler.spy_on_ranks = _spy_on_ranks
    scheduler.Scheduler.spy_on_peak = _spy_on_peak
    _check_pipelines(scheduler.Scheduler)
    run_batch = scheduler.Scheduler.run_batch

    def counted(self, batch, *args, **kwargs):
        global _most_running, _most_held, _decodes_beside_waiting, _launched_ahead
        free = full_slots_free(self.token_to_kv_pool_allocator) + self.tree_cache.evictable_size()
        _most_held = max(_most_held, self.max_total_num_tokens - free)
        if batch.forward_mode.is_decode():
            _most_running = max(_most_running, len(batch.reqs))
            _decodes_beside_waiting += bool(self.waiting_queue)
            _launched_ahead += bool(self.result_queue)
        if os.environ.get(EVICT_STATES) and any(req.is_retracted for req in self.waiting_queue):
            from sglang.srt.mem_cache.base_prefix_cache import EvictParams

            self.tree_cache.evict(EvictParams(num_tokens=0, mamba_num=10**6))
        result = run_batch(self, batch, *args, **kwargs)
        if batch.forward_mode.is_decode():
            _decodes["graph" if result.can_run_cuda_graph else "eager"] += 1
        return result

    scheduler.Scheduler.run_batch = counted
    return scheduler.run_scheduler_process(*args, **kwargs)


def _spy(self, path: str, prompt: list[int]) -> None:
    """Write as JSON: slot counts, the ring's use, and a digest of the KV bytes that the tree holds for `prompt`."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    match = self.tree_cache.match_prefix(MatchPrefixParams(key=RadixKey(array("q", prompt), None)))
    slots = self.tree_cache.path_device_indices(match.last_device_node)[: match.device_prefix_len]
    allocator = self.token_to_kv_pool_allocator
    pool = allocator.get_kvcache()
    own = has_own_windows(pool)
    windows = own and {
        "total": allocator.size_swa,
        "free": allocator.swa_available_size(),
        "evictable": self.tree_cache.swa_evictable_size(),
        "protected": self.tree_cache.swa_protected_size(),
        "mapped": int((pool.full_to_swa_index_mapping > 0).sum()),
    }
    pool = getattr(pool, "full_kv_pool", pool)  # beside windows or recurrent layers
    digest = hashlib.sha256()
    for buffer in pool.kv_buffer if hasattr(pool, "kv_buffer") else (*pool.k_buffer, *pool.v_buffer):
        digest.update(buffer[slots].contiguous().cpu().view(torch.uint8).numpy().tobytes())
    Path(path).write_text(
        json.dumps({**_counts(self), "windows": windows, "matched": len(slots), "digest": digest.hexdigest()})
    )


def _spy_on_peak(self, path: str) -> None:
    """Write the most slots held since the last call."""
    global _most_held
    Path(path).write_text(json.dumps(_most_held))
    _most_held = 0


def _spy_on_ranks(self, folder: str) -> None:
    """Write this rank's counts, and how many compressions it has applied, to a file of its own."""
    rpc = getattr(self, "rpc", None)
    more = {"compressions": rpc.compressor.counters.compressions, "query_slots": rpc.ring.slots} if rpc else {}
    if rpc:
        more |= {"backup_limit": rpc.backups.limit, "entry_bytes": rpc.backups.entry_bytes}
        more |= {"layers": len(rpc.compressor.layers), "restored": rpc.compressor.counters.restored}
    in_flight = [req for batch in self._collect_inflight_batches() if batch is not None for req in batch.reqs]
    counts = {**_counts(self), **more, "running": sum(req.kv.holds_kv for req in in_flight)}
    file = Path(folder, f"{torch.distributed.get_rank()}.json")
    file.with_suffix(".part").write_text(json.dumps(counts))
    file.with_suffix(".part").rename(file)  # whole, once it is there


def _counts(self) -> dict[str, object]:
    return {
        "total": self.max_total_num_tokens,
        "free": full_slots_free(self.token_to_kv_pool_allocator),
        "evictable": self.tree_cache.evictable_size(),
        "protected": self.tree_cache.protected_size(),
        "free_rows": self.req_to_token_pool.available_size(),
        "rows": self.req_to_token_pool.size,
        "query_slots_in_use": self.rpc.ring.in_use if getattr(self, "rpc", None) else 0,
        "running": len(self.running_batch.reqs),
        "most_running": _most_running,
        "decodes": _decodes,
        "decodes_beside_waiting": _decodes_beside_waiting,
        "launched_ahead": _launched_ahead,
        "stale_queries": fresh_queries.stale(),
        "host_backup_bytes": self.rpc.backups.used if getattr(self, "rpc", None) else 0,
    }


def _check_pipelines(scheduler: type) -> None:
    """SGLang's strict check of the pool, which a pipeline's loop leaves out, before each micro-batch is planned."""
    from sglang.srt.managers.scheduler_components.invariant_checker import kv_private_tokens

    plan = scheduler.get_next_batch_to_run

    def checked(self, *args, **kwargs):
        if hasattr(self, "running_mbs"):
            batches = self._collect_inflight_batches()
            listed = [req for batch in batches if batch is not None for req in batch.reqs]
            reqs = {*listed, *([] if self.chunked_req is None else [self.chunked_req])}
            held = sum(kv_private_tokens(req.kv, self.page_size) for req in reqs if req.kv.holds_kv)
            counted = self.pool_stats_observer.get_pool_stats()
            leak, message = self.invariant_checker._check_full_pool(counted, uncached=held)
            assert not leak, message
        return plan(self, *args, **kwargs)

    scheduler.get_next_batch_to_run = checked
