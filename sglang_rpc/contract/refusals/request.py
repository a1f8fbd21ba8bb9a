"""Refusing, or serving uncompressed, single requests: the table, and how it is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple


class Severity(Enum):
    """What to do with a request that cannot be compressed."""

    UNCOMPRESSED = "uncompressed"  #: serve it as SGLang would; the sentence is the reason in its receipt
    REJECT = "reject"  #: it asked for compression itself: HTTP 400 with the sentence


class RequestRefusal(NamedTuple):
    severity: Severity
    name: str  #: of the row
    sentence: str


@dataclass(frozen=True)
class RequestRow:
    """One feature of a request with which its KV cannot be compressed. Each is safe to serve uncompressed."""

    name: str
    predicate: Callable[[Any], str | None]  #: what the request carries; None: nothing
    why: str

    def refusal(self, given: str, asked: bool) -> RequestRefusal:
        if asked:
            sentence = (
                f"{given} does not work with RPC: {self.why}; remove {given.split('=')[0]} "
                "or send custom_params.rpc.enabled false"
            )
            return RequestRefusal(Severity.REJECT, self.name, sentence)
        return RequestRefusal(Severity.UNCOMPRESSED, self.name, f"not compressed because of {given}: {self.why}")


def refuse_request(request: Any, asked: bool | None = None) -> RequestRefusal | None:
    """Whether this request's KV can be compressed.

    Args:
        request: SGLang's GenerateReqInput (of one request or a batch), TokenizedGenerateReqInput or Req.
        asked: whether it asked for compression itself; None: as its custom_params say.

    Returns:
        None if it can, or if it switched RPC off itself; else what to do, with one sentence.
    """
    wishes = _wishes(request)
    if wishes == {False}:
        return None
    asked = True in wishes if asked is None else asked
    for row in REQUEST_ROWS:
        given = row.predicate(request)
        if given is not None:
            return row.refusal(given, asked)
    return None


def _sampling_params(request: Any) -> list[Any]:
    """A list of dicts or SamplingParams, one for all of a batch or one each."""
    params = getattr(request, "sampling_params", None)
    return [] if params is None else list(params) if isinstance(params, list | tuple) else [params]


def _get(params: Any, name: str) -> Any:
    return params.get(name) if isinstance(params, Mapping) else getattr(params, name, None)


def _wishes(request: Any) -> set[bool | None]:
    """What custom_params.rpc ask for, over the members of a batch: True, False, None where it says nothing."""
    wishes: set[bool | None] = set()
    for params in _sampling_params(request):
        custom = _get(params, "custom_params")
        options = custom.get("rpc") if isinstance(custom, Mapping) else None
        wishes.add(None if not isinstance(options, Mapping) else options.get("enabled", True) is not False)
    return wishes


def _beam(request: Any) -> str | None:
    width = max((_get(params, "beam_width") or 1 for params in _sampling_params(request)), default=1)
    return f"beam_width={width}" if width > 1 else None


def _carries(field: str) -> Callable[[Any], str | None]:
    return lambda request: field if getattr(request, field, None) not in (None, False, []) else None


REQUEST_ROWS: tuple[RequestRow, ...] = (
    RequestRow("beam_search", _beam, "beams share the entries of their common tokens, so none may move them"),
    RequestRow(
        "input_embeds",
        _carries("input_embeds"),
        "SGLang starts such a request over when memory runs out, dropping the tokens RPC has counted",
    ),
    RequestRow(
        "return_routed_experts",
        _carries("return_routed_experts"),
        "SGLang reads them back by the slots of all tokens, and compression gives slots away",
    ),
    RequestRow(
        "return_indexer_topk",
        _carries("return_indexer_topk"),
        "SGLang reads them back by the slots of all tokens, and compression gives slots away",
    ),
)
