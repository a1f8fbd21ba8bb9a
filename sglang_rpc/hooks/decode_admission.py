"""How much of its pool a decode server gives to requests that come: by what those there will hold, not by lengths.

SGLang admits a request if it fits beside a reserve for each that is there, --num-reserved-decode-tokens, and if the
longest that runs could still end, were all others retracted. Both count tokens. A compressed request holds less than
its tokens, so retracting it frees less; and it never grows by more than what is left to its peak, so it needs no
larger reserve.
"""

import operator
from collections.abc import Callable, Iterable
from itertools import chain

from sglang_rpc.contract.sglang.disaggregation import DecodePreallocQueue
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.targets import AFTER, AROUND, hook
from sglang_rpc.hooks.admission import plan_of
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of
from sglang_rpc.runtime.admission import Plan, growths
from sglang_rpc.runtime.pages import ceil_align

_QUEUE = "sglang.srt.disaggregation.decode.DecodePreallocQueue"


def growth(runtime: SchedulerRPC, queue: DecodePreallocQueue, reqs: Iterable[Req]) -> list[int]:
    """Slots that each of `reqs` will hold at most beyond those of its row, or of the row that it waits for.

    Asked several times of each request in a step, in which it does not change.
    """
    reqs, known = list(reqs), runtime.growth.known(runtime.step)
    new = [req for req in reqs if req not in known]
    known.update(zip(new, growths([_plan(queue, req) for req in new], runtime.page_size), strict=True))
    return [known[req] for req in reqs]


def _plan(queue: DecodePreallocQueue, req: Req) -> Plan:
    from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

    entries = req.kv.kv_allocated_len if req.kv.holds_kv else queue._pre_alloc_fill_len(req)
    evicted = 0 if req.rpc is None else req.rpc.evicted
    generated = max(0, entries - len(req.origin_input_ids) + evicted)
    tokens = max(0, req.sampling_params.max_new_tokens - len(req.output_ids))
    return plan_of(req, generated, min(tokens, int(CLIP_MAX_NEW_TOKENS)), ends=False)


def _reserved(runtime: SchedulerRPC, queue: DecodePreallocQueue, reqs: Iterable[Req]) -> int:
    return sum(min(queue.num_reserved_decode_tokens, slots) for slots in growth(runtime, queue, reqs))


def _own(runtime: SchedulerRPC, req: Req) -> int:
    """Slots that a retraction of `req` frees: not the tree's."""
    return ceil_align(req.kv.kv_allocated_len, runtime.page_size) - req.kv.cache_protected_len


def _running(queue: DecodePreallocQueue) -> list[Req]:
    return [req for req in queue.scheduler.running_batch.reqs if req.kv.holds_kv]


def _anyone_waits(queue: DecodePreallocQueue) -> bool:
    # SGLang asks in every step, also where the answer is nobody's.
    return bool(queue.queue or queue.retracted_queue)


@hook(
    AROUND,
    f"{_QUEUE}._active_reserved_tokens",
    "so much is reserved for each request that is there as if it were never compressed",
)
def reserve_for_those_there(
    original: Callable[..., int],
    queue: DecodePreallocQueue,
    n_active: int | None = None,
    extra_reserved_reqs: int = 0,
) -> int:
    """AROUND DecodePreallocQueue._active_reserved_tokens: SGLang's reserve, but for none more than it will grow."""
    runtime = runtime_of(queue.scheduler)
    if runtime is None or n_active is not None or not _anyone_waits(queue):
        return original(queue, n_active, extra_reserved_reqs)
    coming = (each.req for each in queue.transfer_queue.queue if not each.host_staged)
    there = chain(queue.scheduler.running_batch.reqs, coming, queue.scheduler.waiting_queue)
    admitted = queue.num_reserved_decode_tokens * extra_reserved_reqs  # in this step
    return _reserved(runtime, queue, there) + admitted


@hook(
    AROUND,
    f"{_QUEUE}._need_space_for_single_req",
    "what the longest request still needs, and what retracting the others frees, are counted in tokens",
)
def space_for_the_longest(
    original: Callable[..., int], queue: DecodePreallocQueue, retractable_tokens: int | None = None
) -> int:
    """AROUND DecodePreallocQueue._need_space_for_single_req: slots that must be free, so that each running request can
    end, were all others retracted."""
    runtime = runtime_of(queue.scheduler)
    running = _running(queue)
    if runtime is None or retractable_tokens is None or not running or not _anyone_waits(queue):
        return original(queue, retractable_tokens)
    own = [_own(runtime, req) for req in running]
    most: int = max(map(operator.add, growth(runtime, queue, running), own))
    return most - sum(own)


@hook(
    AROUND,
    f"{_QUEUE}._required_admission_tokens",
    "a new request is to fit with all tokens that it may get, were those that run retracted",
)
def space_for_a_new_one(
    original: Callable[..., int],
    queue: DecodePreallocQueue,
    req: Req,
    allocated_tokens: int,
    prefix_len: int,
    retractable_tokens: int,
) -> int:
    """AROUND DecodePreallocQueue._required_admission_tokens: slots that a new request needs, now or to end.

    Args:
        allocated_tokens: slots that it takes now, in whole pages.
    """
    runtime = runtime_of(queue.scheduler)
    if runtime is None:
        return original(queue, req, allocated_tokens, prefix_len, retractable_tokens)
    retractable = sum(_own(runtime, other) for other in _running(queue))
    (to_come,) = growth(runtime, queue, [req])
    return allocated_tokens + max(min(queue.num_reserved_decode_tokens, to_come), to_come - retractable)


@hook(
    AFTER,
    f"{_QUEUE}._prealloc_required_tokens",
    "a retracted request waits until its row fits with SGLang's whole reserve, for which a pool may be too small",
)
def space_for_one_that_comes_back(required: tuple[int, int], queue: DecodePreallocQueue, req: Req) -> tuple[int, int]:
    """AFTER DecodePreallocQueue._prealloc_required_tokens: slots of the row, in whole pages, and the reserve."""
    runtime = runtime_of(queue.scheduler)
    if runtime is None:
        return required
    full, windows = required
    return full - queue.num_reserved_decode_tokens + _reserved(runtime, queue, [req]), windows
