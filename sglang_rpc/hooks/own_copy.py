"""A region that lies in the tree, shared, is copied before its request's first compression, which moves it.

    row:   [0, floor) the tree's   [floor, first) prompt   generated and given, as in the text   own tokens
    after: [0, floor) the tree's   [floor, first) prompt   given   generated                     own tokens

`floor` is the last page boundary in the prompt. All after it gets slots of its own; the tree's are let go.
"""

from array import array
from dataclasses import replace

import torch

from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.hooks import reuse, rows
from sglang_rpc.hooks.runtime import SchedulerRPC
from sglang_rpc.runtime.aliases import Span
from sglang_rpc.runtime.pages import ceil_align
from sglang_rpc.runtime.request_state import RequestState


def make(runtime: SchedulerRPC, req: Req, state: RequestState) -> bool:
    """Give `req` its own copy of the region that it goes on with; False if the pool has no room for it now.

    Then its compression is put off by a step; or, if the pool could not hold both at any time, what it goes on with
    becomes prompt, and is not compressed again. Changes the row, and on whom the tree waits to evict.
    """
    continued = state.continued
    assert continued is not None and not continued.copied, "it shares a region"
    page, end = runtime.page_size, req.kv.kv_allocated_len
    begin = continued.first // page * page
    slots = _slots(runtime, ceil_align(end, page) - begin)
    if slots is None:
        if ceil_align(end, page) * 2 - begin > runtime.scheduler.max_total_num_tokens:
            runtime.compressor.release_slot(state)
            state.stop_going_on()
        else:
            generated = rows.generated(req, state)
            state.clock.check_again(generated + 1, continued.front)
        return False
    runtime.fence()  # the forward in flight reads the row, and writes its newest entry
    target = slots[: end - begin].long()
    _copy(runtime, rows.row_of(req), continued.order(begin, end), target)
    _let_go(runtime, req, begin)
    runtime.scheduler.req_to_token_pool.write((rows.row_of(req), slice(begin, end)), target.to(torch.int32))
    _name(runtime, req, state)
    return True


def _slots(runtime: SchedulerRPC, needed: int) -> torch.Tensor | None:
    scheduler = runtime.scheduler
    allocator = scheduler.token_to_kv_pool_allocator
    allocator.evict_to_free_tokens(scheduler.tree_cache, needed)
    return allocator.alloc(needed)


def _copy(runtime: SchedulerRPC, row: int, order: tuple[tuple[int, int], ...], target: torch.Tensor) -> None:
    """Copy row positions, in this order, into the slots `target`, on the current stream."""
    whole = runtime.scheduler.req_to_token_pool.req_to_token[row]
    source = torch.cat([whole[begin:end] for begin, end in order]).long()
    for layer in runtime.compressor.layers:
        for buffer in layer.buffers:
            buffer[target] = buffer[source]


def _let_go(runtime: SchedulerRPC, req: Req, begin: int) -> None:
    """Free the row's private slots, and hold no more of the tree than the first `begin` positions."""
    from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    tree, private = runtime.scheduler.tree_cache, req.kv.cache_protected_len
    row = runtime.scheduler.req_to_token_pool.req_to_token[rows.row_of(req), private : req.kv.kv_allocated_len]
    if row.numel():
        # Cloned: where SGLang gathers what is freed, it does so by views of rows, and this row is written next.
        runtime.scheduler.token_to_kv_pool_allocator.free_segments([(row.clone(), private)])
    key = RadixKey(req.origin_input_ids[:begin], req.extra_key, cache_salt=req.cache_salt)
    node = tree.match_prefix(MatchPrefixParams(key=key)).last_device_node if begin else tree.root_node_handle()
    lock = tree.lock(node)
    tree.unlock(req.lock)
    req.lock, req.last_node = lock, node
    req.kv.cache_protected_len = req.kv.cache_inserted_len = begin


def _name(runtime: SchedulerRPC, req: Req, state: RequestState) -> None:
    """Name what is no longer the tree's by ids that nothing in the tree has.

    There are as many as before, though a compressed row may be shorter: SGLang takes a row to be no longer than prompt
    and output.
    """
    continued, taken = state.continued, reuse.in_force(req)
    assert continued is not None and taken is not None
    number = runtime.aliases.next_number()
    rest = len(taken.key) - continued.first
    key: array[int] = taken.key[: continued.first] + Span(0, rest, number, rest).virtual_ids
    state.continued, state.taken = replace(continued, number=number), replace(taken, key=key)
    reuse.rename(req, key)
