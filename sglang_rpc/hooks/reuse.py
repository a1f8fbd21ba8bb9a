"""A new request whose prompt begins with a text that is held compressed takes over its KV.

In the queue, `origin_input_ids` becomes the key that names the text in the prefix tree (`runtime.aliases`): from there
on the request is, for SGLang, one of as many tokens as it has KV entries, whose beginning is in the tree. Matching,
locks, eviction, pages, chunks and admission are SGLang's own. Positions stay logical: `hooks.positions` adds `offset`.

A virtual id is no token, and must never reach the model. A request that waits holds no lock, so its entries may be
evicted: then it gets its real ids back when it is matched. What a step is about to compute is checked once more.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable

import numpy as np

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.memory import Tree
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import Scheduler, StreamAccumulator
from sglang_rpc.contract.targets import AFTER, BEFORE, REUSE, hook
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import recording
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of, state_of
from sglang_rpc.runtime.aliases import FIRST_VIRTUAL, Alias
from sglang_rpc.runtime.continued import Continued, go_on
from sglang_rpc.runtime.request_state import RequestState, Taken

EVICTED = "what was compressed has been evicted since, or flushed"
NO_BACKUP = "retracted without a KV backup, it was prefilled again"
PAUSED = "a pause had its KV computed again"
UNKNOWN = "its prompt begins with nothing that is known compressed"
LOGPROBS = "log probabilities of what was compressed are asked for"


def in_force(req: Req) -> Taken | None:
    """What the request's prompt takes over; None if it is its own text (SGLang may have replaced it, too)."""
    state = state_of(req)
    taken = None if state is None else state.taken
    return taken if taken is not None and req.origin_input_ids is taken.key else None


def offset_of(req: Req) -> int:
    """Tokens of its prompt that have no KV entry of their own."""
    taken = in_force(req)
    return 0 if taken is None else taken.alias.offset


def text_of(req: Req) -> array[int]:
    """The real ids of its prompt."""
    taken = in_force(req)
    return req.origin_input_ids if taken is None else taken.text


def namespace_of(req: Req, state: RequestState) -> Hashable:
    """What keeps requests of equal ids apart: SGLang's own keys, LoRA among them, and what decides how KV is cut."""
    o = state.options
    return req.extra_key, req.cache_salt, o.interval, o.window, o.ratio, o.min_kept, o.scope


def refuse_foreign_ids(req: Req) -> None:
    """Raises ConfigError if a new request's prompt has ids that are no tokens. SGLang does not look at them.

    With an id that names compressed KV it would read a thought that it was never shown.
    """
    # Images stand in prompts under ids beyond the vocabulary, and an adapter may add tokens to it.
    plain = req.multimodal_inputs is None and req.lora_id is None
    limit, ids = req.vocab_size if plain else FIRST_VIRTUAL, np.asarray(req.origin_input_ids)
    foreign = ids[(ids < 0) | (ids >= limit)]
    if len(foreign):
        raise ConfigError(f"input_ids must be from 0 to {limit - 1}, got {foreign[0]}", "request.input_ids")


@hook(
    BEFORE,
    "sglang.srt.managers.scheduler.Scheduler._add_request_to_queue",
    "every new request passes here when all of it is known",
    REUSE,
)
def take_over_in_queue(scheduler: Scheduler, req: Req, *_args: object, **_kwargs: object) -> None:
    """BEFORE Scheduler._add_request_to_queue, also of a retracted request, which keeps what it has."""
    runtime = runtime_of(scheduler)
    if runtime is not None:
        take_over(runtime, req)


def take_over(runtime: SchedulerRPC, req: Req) -> None:
    """Before a new request is queued: name its prompt by the longest text that is held compressed, if there is one.

    Changes the request's ids, and the lengths that count in them.
    """
    state = req.rpc
    if state is None or state.options.reuse == "off" or state.taken is not None:
        return
    if req.is_retracted or req.finished() or req.to_finish is not None:
        return
    state.not_reused = _why_not(req, state)
    if state.not_reused:
        return
    known = runtime.aliases.find(namespace_of(req, state), req.origin_input_ids)
    usable = [(alias, continued) for alias in known if (continued := _go_on(runtime, req, state, alias)) or alias.spans]
    fitting = [each for each in usable if _shown(runtime, req, each[0]) >= each[0].entries]
    if not fitting:
        state.not_reused = LOGPROBS if usable else UNKNOWN
        return
    (alias, continued), text = fitting[0], req.origin_input_ids
    state.taken = taken = Taken(alias, text, alias.key(text), req.logprob_start_len)
    rename(req, taken.key)
    if continued is not None:
        state.go_on(continued)
    req.already_computed = -alias.offset  # makes `cached_tokens` logical
    if req.logprob_start_len >= 0:
        req.logprob_start_len -= alias.offset


def _go_on(runtime: SchedulerRPC, req: Req, state: RequestState, alias: Alias) -> Continued | None:
    """How the request would go on with the region that `alias` is of; None if it is prompt for it.

    A think segment that was open must still be. Where layers have sliding windows, the newest entries must stay last;
    where attention is added up, in the entries themselves, that of others who share them would count.
    """
    thought, text = alias.thought, req.origin_input_ids
    if thought is None or state.options.reuse != "continue" or not state.active:
        return None
    if runtime.compressor.reach or runtime.every_step:
        return None
    if state.segment is not None:
        markers = runtime.compressor.markers
        assert markers is not None, "it has a segment"
        ended = markers.start is None and markers.end.find(text, thought.begin) is not None
        if state.segment.start is None or ended:
            return None
    return go_on(thought, alias.tokens, [(s.begin, s.end, s.held) for s in alias.spans], alias.offset, text)


def _why_not(req: Req, state: RequestState) -> str:
    """Why the request must be shown to SGLang as it is; "" if it need not."""
    if not state.options.enabled:
        return "RPC is switched off by the request"
    if state.refused is not None:
        return state.refused
    if req.custom_logit_processor is not None:
        return "a custom logit processor reads the ids of the prompt"
    if req.multimodal_inputs is not None or req.positional_embed_overrides is not None:
        return "its prompt has more than text, whose places are counted in tokens"
    return ""


def _shown(runtime: SchedulerRPC, req: Req, alias: Alias) -> int:
    """Entries of the prompt that the tree may give: whole pages, of all but the last token, and none whose log
    probabilities are asked for."""
    entries = len(req.origin_input_ids) - alias.offset - 1
    if req.return_logprob and req.logprob_start_len >= 0:
        entries = min(entries, req.logprob_start_len - alias.offset)
    return entries // runtime.page_size * runtime.page_size


def rename(req: Req, ids: array[int]) -> None:
    """Show SGLang `ids` as the request's prompt."""
    # Assigned, not edited: `origin_input_ids_unpadded`, which detokenizing reads, may be the same array. SGLang adds to
    # the other array by its length alone, so it must be built anew.
    req.origin_input_ids = ids
    req.full_untruncated_fill_ids = array("q")


def give_back(req: Req) -> Taken | None:
    """Its real ids again, if it has others; returns what it had taken over."""
    taken = in_force(req)
    if taken is not None:
        rename(req, taken.text)
        req.logprob_start_len = taken.logprob_start_len
    return taken


def revert(req: Req, why: str) -> None:
    """Its real ids again, of which all are prefilled: it takes over nothing after all. It must hold no row."""
    state = req.rpc
    if state is None or give_back(req) is None:
        return
    assert not req.kv.holds_kv, f"{req.rid}: its row is laid out by the key"
    state.taken, state.continued, state.not_reused = None, None, why
    state.clock.reset()
    state.hooks.fitted_for = None
    state.totals.took_over(0, 0)
    state.totals.go_on(0)
    req.already_computed = 0


@hook(
    AFTER,
    "sglang.srt.managers.schedule_batch.Req.init_next_round_input",
    "entries of a request that waits may be evicted: the ids that name them are no tokens",
    REUSE,
)
def real_ids_if_evicted(
    _result: object, req: Req, tree_cache: Tree | None = None, cow_mamba: bool | None = None
) -> None:
    """AFTER Req.init_next_round_input, each time a waiting request is matched: if the tree no longer has all that its
    prompt takes over, another alias or its real ids, and match again."""
    taken, state = in_force(req), state_of(req)
    if taken is None or state is None or tree_cache is None or req.kv.holds_kv or state.hooks.saved is not None:
        return
    if req.prefix_len >= taken.alias.entries:
        return
    runtime = runtime_of(tree_cache.req_to_token_pool)
    assert runtime is not None
    revert(req, EVICTED)
    if runtime.aliases.drop(namespace_of(req, state), taken.text, taken.alias):
        runtime.compressor.counters.stale_aliases += 1
    take_over(runtime, req)
    if in_force(req) is None:
        state.not_reused = EVICTED
    runtime.report_reuse()
    req.init_next_round_input(tree_cache, cow_mamba)


@hook(
    AFTER,
    "sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_extend",
    "the last check before the model is given ids; what a request takes over now, it keeps",
    REUSE,
)
def count_reuse(_result: object, batch: ScheduleBatch) -> None:
    """AFTER ScheduleBatch.prepare_for_extend, once per extend step, before its forward: count requests that take over
    KV.

    Raises RuntimeError if a virtual id is about to be computed.
    """
    runtime = runtime_of(batch.req_to_token_pool)
    assert runtime is not None
    if bool((batch.prefill_input_ids_cpu >= FIRST_VIRTUAL).any()):
        raise RuntimeError("RPC: a virtual id, which names compressed KV, was going to be computed as a token")
    counters = runtime.compressor.counters
    for req in batch.reqs:
        taken, state = in_force(req), req.rpc
        if taken is None or state is None:
            continue
        state.totals.go_on(state.inherited)
        recording.begin(runtime, req, state)
        if taken.alias.compressed and not state.totals.reused:
            state.totals.took_over(taken.alias.compressed, taken.alias.held)
            counters.reused_requests += 1
            counters.reused_tokens += taken.alias.compressed
            runtime.report_reuse()


@hook(
    AFTER,
    "sglang.srt.managers.scheduler_components.output_streamer._GenerationStreamAccumulator.accept",
    "a chunk of a response says how many tokens the prompt has, not how many entries",
    REUSE,
)
def count_prompt(_result: object, chunks: StreamAccumulator, *, req: Req) -> None:
    """AFTER _GenerationStreamAccumulator.accept, once per request and step: `prompt_tokens` is logical."""
    offset = offset_of(req)
    if offset and chunks.output_reqs and chunks.output_reqs[-1] is req:
        chunks.prompt_tokens[-1] = len(req.origin_input_ids) + offset


@hook(
    AFTER,
    "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.reset",
    "a flush or new weights empty the tree, so no alias has its entries any more",
    REUSE,
)
def forget_aliases(_result: object, tree: Tree) -> None:
    """AFTER UnifiedRadixCache.reset: frees what the aliases take; they would match nothing."""
    runtime = runtime_of(tree.req_to_token_pool)
    if runtime is not None:
        runtime.aliases.clear()
        runtime.report_reuse()
