"""RPC options of the endpoints whose own request models have no custom_params: Responses, Anthropic, Ollama.

These endpoints drop what their models don't know. The options are read from the body that FastAPI has parsed, travel
on the HTTP request, and are laid into the sampling parameters where the request enters the tokenizer manager.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import TypeAlias

from starlette.requests import HTTPConnection, Request

from sglang_rpc.config import RequestOptions
from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.sglang.endpoints import AnthropicServing, ResponsesRequest, ResponsesResponse, Serving
from sglang_rpc.contract.sglang.requests import GenerateReqInput
from sglang_rpc.contract.sglang.server import TokenizerManager
from sglang_rpc.contract.targets import AFTER, AROUND, hook
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks.alias import drop_alias, with_alias
from sglang_rpc.hooks.reporting import KEY, Json

#: SGLang's handler of an endpoint: serving, its parsed request, the HTTP request -> the response.
Handler: TypeAlias = Callable[..., Awaitable[object]]
#: What the tokenizer manager yields of a request, chunk after chunk.
Results: TypeAlias = AsyncGenerator[Json, None]

#: Where the HTTP request's `scope`, a dict of one request, holds `custom_params.rpc`.
_SCOPE_KEY = "sglang_rpc.options"
#: The receipt of the request that this asyncio task serves. A task serves one request, and no more if it is streamed.
_receipt: ContextVar[Json | None] = ContextVar("rpc_receipt", default=None)

_WHY = "the endpoint's request model drops custom_params; the HTTP request has them"


@hook(AROUND, "sglang.srt.entrypoints.ollama.serving.OllamaServing.handle_chat", _WHY)
@hook(AROUND, "sglang.srt.entrypoints.ollama.serving.OllamaServing.handle_generate", _WHY)
async def take_options(
    original: Handler, serving: Serving, request: object, raw_request: Request | None = None
) -> object:
    """AROUND the handlers of /api/chat and /api/generate. Raises HTTPException, 400."""
    return await _take(original, serving, request, raw_request, serving.tokenizer_manager)


@hook(AROUND, "sglang.srt.entrypoints.openai.serving_responses.OpenAIServingResponses.create_responses", _WHY)
async def take_from_responses(
    original: Handler, serving: Serving, request: ResponsesRequest, raw_request: Request | None = None
) -> object:
    """AROUND the handler of /v1/responses, which has the alias too. Raises HTTPException, 400."""
    return await _take(original, serving, request, raw_request, serving.tokenizer_manager, request)


@hook(AROUND, "sglang.srt.entrypoints.anthropic.serving.AnthropicServing.handle_messages", _WHY)
async def take_from_messages(
    original: Handler, serving: AnthropicServing, request: object, raw_request: Request
) -> object:
    """AROUND the handler of /v1/messages. Raises HTTPException, 400."""
    return await _take(original, serving, request, raw_request, serving.openai_serving_chat.tokenizer_manager)


@hook(
    AROUND,
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
    "every endpoint passes its HTTP request here, beside the sampling parameters it made of it",
)
def carry_options(
    original: Callable[..., Results], manager: TokenizerManager, obj: GenerateReqInput, request: object = None
) -> Results:
    """AROUND TokenizerManager.generate_request: lays the options kept by `_take` into the sampling parameters.

    Changes `obj.sampling_params`, which is this request's own dict. Other requests pass through untouched.
    """
    # None from the engine; gRPC has requests of its own.
    options = request.scope.get(_SCOPE_KEY) if isinstance(request, HTTPConnection) else None
    if options is None:
        return original(manager, obj, request)
    assert isinstance(obj.sampling_params, dict)  # the endpoints above send no batches
    others = obj.sampling_params.get("custom_params") or {}
    obj.sampling_params["custom_params"] = {**others, "rpc": options}
    return _noting_receipt(original(manager, obj, request))


@hook(
    AFTER,
    "sglang.srt.entrypoints.openai.serving_responses.OpenAIServingResponses._build_response",
    "every finished response, whole, streamed or in the background, is built here once its tokens are there",
)
def show_receipt(response: ResponsesResponse, *_args: object, **_kwargs: object) -> None:
    """AFTER OpenAIServingResponses._build_response: `metadata.rpc` is the receipt as JSON, for a request that asked.

    A value of `metadata` is a string, in OpenAI's API and its clients.
    """
    receipt = _receipt.get()
    if receipt is not None:
        response.metadata = {**(response.metadata or {}), KEY: json.dumps(receipt)}


async def _noting_receipt(results: Results) -> Results:
    _receipt.set(None)
    async with aclosing(results):
        async for result in results:
            _receipt.set(result["meta_info"].get(KEY))
            yield result


async def _take(
    original: Handler,
    serving: object,
    request: object,
    raw_request: Request | None,
    manager: TokenizerManager,
    aliased: ResponsesRequest | None = None,
) -> object:
    """Calls the handler; before, checks `custom_params.rpc` of the body and keeps it on the HTTP request.

    Args:
        aliased: `request`, where it may have the options in `chat_template_kwargs` too; they are taken from there.

    Raises:
        HTTPException: 400, for malformed options before anything is streamed, and where a request that carries
            options is refused later and the endpoint would answer 500. SGLang gives it the endpoint's own shape.
    """
    config = config_of(manager.server_args)
    if config is None or raw_request is None:
        return await original(serving, request, raw_request)
    from fastapi import HTTPException

    custom_params = _custom_params(await raw_request.json())
    try:
        if aliased is not None:
            custom_params = with_alias(custom_params, aliased.chat_template_kwargs)
            drop_alias(aliased)
        if custom_params is not None:
            RequestOptions.from_custom_params(custom_params, config)
    except ConfigError as error:
        raise HTTPException(400, str(error)) from error
    if custom_params is None:
        return await original(serving, request, raw_request)
    raw_request.scope[_SCOPE_KEY] = custom_params["rpc"]
    try:
        return await original(serving, request, raw_request)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


def _custom_params(body: object) -> Json | None:
    """The body's `custom_params`, or those in its `options` (all that Ollama's client can send), if RPC is in them."""
    if not isinstance(body, dict):
        return None
    options = body.get("options")
    for place in (body, options if isinstance(options, dict) else {}):
        custom_params = place.get("custom_params")
        if isinstance(custom_params, dict) and "rpc" in custom_params:
            return custom_params
    return None
