"""What a compressed request leaves in the tree for later ones: its KV, under ids that name what it is.

After its last compression, at D generated tokens, a row is

    [ prompt ][ what is left of D generated tokens ][ tokens D.., one entry each ]

and enters the tree under `prompt ids ++ virtual ids ++ ids of the tail`, one per entry. Every point of the tail is one
that later requests may go on from, exactly as the request was there.
"""

from collections.abc import Callable

from sglang_rpc.contract.sglang.memory import Tree
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.hooks import reuse
from sglang_rpc.hooks.runtime import runtime_of
from sglang_rpc.runtime.aliases import Alias, Span
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
    text, prompt, at = reuse.text_of(req), len(req.origin_input_ids), state.clock.compressed_at
    held = at - state.evicted
    last = min(up_to, prompt + len(req.output_ids_through_stop) - state.evicted)
    # A text that parts from this one within the page of its last compressed entries shares none of that page, and would
    # compute again tokens that these entries stand for.
    whole = ceil_align(prompt + held, runtime.page_size)
    if last < whole:
        return False
    tail = whole - prompt - held
    span = Span(len(text), len(text) + at, runtime.aliases.next_number(), held)
    # Only `insert` reads them in here, and the request has ended: nothing is prefilled by them again.
    ids = req.full_untruncated_fill_ids
    req.full_untruncated_fill_ids = req.origin_input_ids + span.virtual_ids + req.output_ids[at:]
    insert(tree, req, up_to=last, **kwargs)
    req.full_untruncated_fill_ids = ids
    if req.kv.cache_protected_len >= whole:
        before = reuse.in_force(req)
        spans = () if before is None else before.alias.spans
        runtime.aliases.record(
            reuse.namespace_of(req, state), text + req.output_ids[: at + tail], Alias((*spans, span), tail)
        )
        runtime.report_reuse()
    return True
