"""The receipt: what a response says of its request's compressions."""

from typing import Any

from sglang_rpc.config import RequestOptions
from sglang_rpc.runtime.totals import Totals

#: Fields of a receipt (`meta_info.rpc` of a response) and what they mean, in their order.
RECEIPT_FIELDS = {
    "compressions": "compressions over the request's life, retractions included",
    "generated": "tokens generated: the logical length after the prompt",
    "held": "KV entries held at the end, after the prompt: the physical length",
    "evicted": "KV entries evicted over the request's life, counted once per position, not per layer",
    "slots_freed": "pool slots given back, in whole pages",
    "late": "compressions after their due date: no query slot was free, memory pressure began later, or the request "
    "was prefilled again",
    "early": "compressions before their due date, to spare a retraction",
    "retractions": "times SGLang retracted the request",
    "restored": "retractions after which the request came back with the KV it had",
    "interval": "P, of this request",
    "window": "R, of this request",
    "ratio": "c, of this request",
    "min_kept": "F, of this request: candidates that each compression kept at least",
    "scope": "think or all, of this request",
    "cuts": "steps that ended at a due date though more tokens were accepted; this and the next two fields only where "
    "the server speculates",
    "tokens_per_step": "tokens that a step gave on average before the first compression; 0 if there was none",
    "tokens_per_step_compressed": "the same after it",
    "reason": "why the request was never compressed; only where `compressions` is 0",
    "reuse": "share or continue, of this request; this and the next fields only where it is not off",
    "reused": "tokens of the prompt taken over compressed, as an earlier request left them",
    "reused_held": "KV entries that they are held as, beside the rest of the prompt",
    "continued": "tokens that earlier requests generated of the region that this one goes on with; only with reuse "
    "continue",
    "not_reused": "why none were taken over; only where `reused` and `continued` are 0",
}
#: Fields that are added where prompts are tokenized.
TEXT_FIELDS = {
    "reused_text": "tokens of the prompt, which was text, whose ids a known text gave; only with --rpc-reuse-text",
}
#: Fields that a request has of a server that speculates.
_OF_SPECULATION = ("cuts", "tokens_per_step", "tokens_per_step_compressed")
#: Fields that a request has whose reuse is not off.
_OF_REUSE = ("reuse", "reused", "reused_held", "continued", "not_reused")


def make_receipt(
    options: RequestOptions,
    totals: Totals,
    generated: int,
    held: int,
    reason: str,
    not_reused: str = "",
    speculates: bool = False,
) -> dict[str, Any]:
    """Build a receipt, with the fields of RECEIPT_FIELDS.

    Args:
        generated: tokens generated, the logical length.
        held: KV entries held of them.
        reason: why the request was not compressed; used if it was not.
        not_reused: why it took nothing over; used if it did not.
    """
    own = {"generated": generated, "held": held, "reason": reason, "not_reused": not_reused}
    own["tokens_per_step"] = totals.before.tokens_per_step
    own["tokens_per_step_compressed"] = totals.after.tokens_per_step
    values = {**vars(totals), **vars(options), **own}
    left_out = set() if options.reuse != "off" else set(_OF_REUSE)
    if not speculates:
        left_out |= set(_OF_SPECULATION)
    if totals.compressions > 0:
        left_out.add("reason")
    if totals.reused > 0 or totals.continued > 0:
        left_out.add("not_reused")
    if options.reuse != "continue":
        left_out.add("continued")
    return {name: values[name] for name in RECEIPT_FIELDS if name not in left_out}
