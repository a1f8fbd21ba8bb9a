"""What a scheduler asks of a draft model: where its KV lies (draft_queries.py), and which slots its steps need."""

from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.hooks.model import draft_rpc
from sglang_rpc.types import KVLayer


def draft_layers(scheduler: Scheduler) -> list[KVLayer]:
    """Where the KV of each layer of the draft model lies; nothing without one."""
    if scheduler.draft_worker is None:
        return []
    found = [draft_rpc(runner) for runner in scheduler.draft_worker._draft_model_runners()]
    return [layer for draft in found if draft is not None for layer in draft.layers]


def slots_for_drafts(scheduler: Scheduler) -> int:
    """Slots that a row has after its entries in each step, which SGLang takes in whole pages; none without drafts."""
    if scheduler.draft_worker is None:
        return 0
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_reserve_per_decode

    return int(get_alloc_reserve_per_decode())
