"""Single requests that RPC cannot compress: refused with HTTP 400, or served uncompressed."""

from collections.abc import Callable, Mapping
from typing import Any

from sglang_rpc.config import RequestOptions
from sglang_rpc.contract.refusals.row import Row, named
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.budget import pages_missed, reach_missed


def refuse_request(request: Any, asked: bool | None = None) -> str | None:
    """Why this request is served uncompressed; None if RPC can compress it, or if it switched RPC off itself.

    Args:
        request: SGLang's GenerateReqInput (of one request or a batch), TokenizedGenerateReqInput or Req.
        asked: whether it asked for compression itself; None: as its custom_params say.

    Raises:
        ConfigError: it cannot be compressed, and asked for compression itself.
    """
    wishes = _wishes(request)
    if wishes == {False}:
        return None
    for row in REQUEST_ROWS:
        given = row.given(request)
        if not given:
            continue
        if asked or (asked is None and True in wishes):
            raise ConfigError(
                f"{given} does not work with RPC: {row.why}; remove {str(given).split('=')[0]} "
                "or send custom_params.rpc.enabled false",
                f"request.{row.name}",
            )
        return f"not compressed because of {given}: {row.why}"
    return None


def refuse_reach(options: RequestOptions, reach: int, page: int = 1) -> None:
    """Raises ConfigError if compressions with these options would take entries from sliding windows of this reach, or
    evict a part of a page where these windows have a pool of their own, of such pages."""
    if missed := reach_missed(options, reach):
        raise ConfigError(f"custom_params.rpc does not suit this model, whose windows see {missed}", "request.reach")
    if missed := pages_missed(options, page):
        sentence = f"custom_params.rpc does not suit this model, whose windows have a KV pool of their own, of {missed}"
        raise ConfigError(sentence, "request.pages")


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


def _streaming_session(request: Any) -> str | None:
    session = getattr(request, "session", None)  # the scheduler knows it; the server's process knows its name alone
    return "session_params of a streaming session" if session is not None and session.streaming else None


def _carries(field: str) -> Callable[[Any], str | None]:
    return lambda request: field if getattr(request, field, None) not in (None, False, []) else None


_BY_SLOT = "SGLang reads them back by the slots of all tokens, and compression gives slots away"

REQUEST_ROWS: tuple[Row[[Any]], ...] = named(
    beam_search=Row(_beam, "beams share the entries of their common tokens, so none may move them"),
    input_embeds=Row(
        _carries("input_embeds"),
        "SGLang starts such a request over when memory runs out, dropping the tokens RPC has counted",
    ),
    streaming_session=Row(
        _streaming_session,
        "the session hands the turn's row to the next turn, and takes its KV length for a number of tokens",
    ),
    return_routed_experts=Row(_carries("return_routed_experts"), _BY_SLOT),
    return_indexer_topk=Row(_carries("return_indexer_topk"), _BY_SLOT),
)
