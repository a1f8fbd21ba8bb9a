"""Models whose sliding-window layers have a KV pool of their own: what a compression does there.

No KV of window layers moves. Their slots are freed, or moved in SGLang's map (memory/window_slots.py says which). A
captured graph and the forward in flight read that map, so it changes in place, on the stream and at the moment at which
the other layers' KV moves.
"""

from collections.abc import Callable

from sglang_rpc.contract.layers import decoder_layers, window_of
from sglang_rpc.contract.sglang.model import ModelRunner
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import AROUND, hook
from sglang_rpc.contract.windows import window_allocator
from sglang_rpc.hooks.runtime import state_of
from sglang_rpc.memory.window_slots import SlotMove, WindowPool, move_slots
from sglang_rpc.runtime.pages import ceil_align
from sglang_rpc.types import Compression


def window_pool_of(model_runner: ModelRunner) -> WindowPool | None:
    """The pool that this model's window layers have for themselves; None where all layers share one."""
    allocator = window_allocator(model_runner.token_to_kv_pool_allocator)
    if allocator is None:
        return None
    windows = [window for layer in decoder_layers(model_runner.model) if (window := window_of(layer))]
    return WindowPool(len(windows), max(windows), model_runner.token_to_kv_pool_allocator.page_size)


def move_window_slots(scheduler: Scheduler, req: Req, c: Compression) -> None:
    """Free and move the window layers' slots of a row, and free the other layers' after its kept entries.

    Sets the request's cursor. On the current stream, after the KV of the other layers has moved.
    """
    from sglang.srt.mem_cache.unified_cache.component_type import ComponentType

    allocator, page = window_allocator(scheduler.token_to_kv_pool_allocator), scheduler.page_size
    assert allocator is not None
    row = scheduler.req_to_token_pool.req_to_token[c.row]
    cursor = req.kv.get_evicted_seqlen(ComponentType.SWA)
    move = SlotMove.of(c.begin, c.end, c.evicted, cursor, page)
    first, end = move.freed
    allocator.free_swa_segment(row[first:end], start_pos=first)
    move_slots(allocator.get_kvcache().full_to_swa_index_mapping, row, move, c.evicted)
    first = ceil_align(c.new_end, page)
    allocator.free_full_segment(row[first : c.end], start_pos=first)
    if move.cursor != cursor:
        req.kv.set_evicted_seqlen(ComponentType.SWA, move.cursor)


@hook(
    AROUND,
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.evict_sliding_windows",
    "what has left a window is counted in row positions, and SGLang counts tokens",
)
def evict_by_position(
    original: Callable[..., None], tree: object, req: Req, pre_len: int, *, eviction_interval: int = 1
) -> None:
    """AROUND BasePrefixCache.evict_sliding_windows, before a decode step, per request that SGLang takes to be due.

    In tokens a compressed request is due in every step. The interval that SGLang has asked of the tokens is asked here
    of the row, or else each step would free one slot.
    """
    state = state_of(req)
    if state is not None and state.evicted:
        from sglang.srt.environ import envs

        interval: int = envs.SGLANG_SWA_EVICTION_INTERVAL.get()
        pre_len, eviction_interval = pre_len - state.evicted, max(eviction_interval, interval)
    original(tree, req, pre_len, eviction_interval=eviction_interval)
