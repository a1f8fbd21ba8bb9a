"""What a compressed request leaves in the tree for later ones: its KV, under ids that name what it is.

After its last compression, at D generated tokens, a row is

    [ prompt ][ what is left of D generated tokens ][ tokens D.., one entry each ]

and enters the tree under `prompt ids ++ virtual ids ++ ids of the tail`, one per entry. Every point of the tail is one
that later requests may go on from, exactly as the request was there.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from sglang_rpc.contract.sglang.memory import Tree
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.hooks import reuse, rows
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of
from sglang_rpc.runtime.aliases import Alias, Span
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.continued import ParkedQueries, Ranges, Thought
from sglang_rpc.runtime.pages import ceil_align
from sglang_rpc.runtime.request_state import RequestState


def publish(
    insert: Callable[..., None], tree: Tree, req: Req, state: RequestState, up_to: int, **kwargs: object
) -> bool:
    """Insert a finished, compressed request's row under a key of its own; False if it stays out of the tree.

    Args:
        insert: SGLang's `checkpoint`, which inserts `full_untruncated_fill_ids`, in whole pages.
        up_to: entries of the row that SGLang would insert.
    """
    runtime = runtime_of(tree.req_to_token_pool)
    if runtime is None or state.options.reuse == "off" or req.multimodal_inputs is not None:
        return False
    text, output, at = reuse.text_of(req), req.output_ids_through_stop, state.clock.compressed_at
    prompt = state.front(len(req.origin_input_ids))
    held = at - state.evicted
    last = min(up_to, prompt + state.inherited + len(output) - state.evicted)
    # A text that parts from this one within the page of its last compressed entries shares none of that page, and would
    # compute again tokens that these entries stand for.
    whole = ceil_align(prompt + held, runtime.page_size)
    if last < whole:
        return False
    tail = whole - prompt - held
    span, spans = _spans(runtime, req, state, len(text))
    own = at - state.inherited  # tokens of its own that the span stands for
    # Only `insert` reads these ids, and the request has ended: nothing is prefilled by them again.
    ids, shown = req.full_untruncated_fill_ids, req.origin_input_ids
    key = shown + span.virtual_ids
    if state.continued is not None:
        key = shown[: state.continued.first] + span.virtual_ids
        req.origin_input_ids = key[:prompt]
    req.full_untruncated_fill_ids = key + output[own:]
    insert(tree, req, up_to=last, **kwargs)
    req.full_untruncated_fill_ids, req.origin_input_ids = ids, shown
    if req.kv.cache_protected_len >= whole:
        thought = _thought(runtime, req, state, output[own + tail :], published=True)
        alias = Alias((*spans, span), tail, thought=thought)
        runtime.aliases.record(reuse.namespace_of(req, state), text + output[: own + tail], alias)
        runtime.report_reuse()
    return True


def remember(tree: Tree, req: Req, state: RequestState) -> None:
    """Note of a finished request that has published nothing which tokens it generated.

    So requests that go on from it have one region with it, where they may. One that was compressed, but no whole page
    ago, is gone on from as it began: what it generated is prefilled again, and compressed late.
    """
    runtime, output = runtime_of(tree.req_to_token_pool), req.output_ids_through_stop
    if runtime is None or not state.active or len(output) == 0 or req.multimodal_inputs is not None:
        return
    # A text is looked up where it goes on after an alias: the newest token stays outside.
    thought = _thought(runtime, req, state, output[-1:], published=False)
    if thought is None:
        return
    before, text = reuse.in_force(req), reuse.text_of(req)
    alias = Alias(()) if before is None else before.alias
    more = len(text) + len(output) - 1 - alias.named
    if more >= 0:
        alias = Alias(alias.spans, alias.tail, more, thought)
        runtime.aliases.record(reuse.namespace_of(req, state), text + output[:-1], alias)
        runtime.report_reuse()


def _spans(runtime: SchedulerRPC, req: Req, state: RequestState, text: int) -> tuple[Span, tuple[Span, ...]]:
    """What its region is published as, and the spans before it, of a prompt of `text` tokens."""
    before, at = reuse.in_force(req), state.clock.compressed_at
    spans = () if before is None else before.alias.spans
    if state.continued is None:
        return Span(text, text + at, runtime.aliases.next_number(), at - state.evicted), spans
    assert state.continued.number is not None, "it is compressed in a copy of its own"
    begin = state.continued.thought.begin
    held = state.continued.front - state.continued.first + at - state.evicted
    span = Span(begin, text + at - state.inherited, state.continued.number, held)
    return span, tuple(each for each in spans if each.begin < begin)


def _thought(
    runtime: SchedulerRPC, req: Req, state: RequestState, known: array[int], published: bool
) -> Thought | None:
    """What others need to go on with its region; `known`: its output after the text that they find it by."""
    if state.options.reuse != "continue" or state.start is None:
        return None
    begin, clock = len(reuse.text_of(req)), state.clock
    given: Ranges = ()
    if state.continued is not None:
        begin, given = state.continued.thought.begin, state.continued.given
    if not published and state.compacted:
        clock = Clock() if state.continued is None else state.continued.clock()
    queries, upto = None, min(rows.generated(req, state), state.inherited + len(req.output_ids_through_stop))
    if state.recording.slot is not None:
        since = max(state.recording.since, upto - runtime.ring.window)
        queries = ParkedQueries(runtime.compressor.recorder.park(state.recording), since, upto)
    return Thought(begin, given, state.start, clock.events, clock.evicted, known, queries)
