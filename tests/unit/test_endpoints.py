"""RPC options on their way from a body to the sampling parameters, without a server: what is taken, and from where."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from fastapi import HTTPException, Request

from sglang_rpc import RPCConfig
from sglang_rpc.contract.settings import attach
from sglang_rpc.hooks import endpoints

OPTIONS = {"interval": 32}
SCOPE_KEY = "sglang_rpc.options"


class Body(Request):
    """An HTTP request with this body."""

    def __init__(self, body):
        super().__init__({"type": "http"})
        self._body = body

    async def json(self):
        return self._body


def manager(config: RPCConfig | None) -> SimpleNamespace:
    server_args = SimpleNamespace()
    attach(server_args, config)
    return SimpleNamespace(server_args=server_args)


def handle(body, config: RPCConfig | None = RPCConfig(), original=None):  # noqa: B008 (frozen)
    """What the handler saw of the options, after the hook."""
    request = body if body is None else Body(body)

    async def handler(serving, model, raw_request):
        return raw_request.scope.get(SCOPE_KEY)

    serving = SimpleNamespace(tokenizer_manager=manager(config))
    return asyncio.run(endpoints.take_options(original or handler, serving, "model", request))


@pytest.mark.parametrize(
    "body",
    [
        {"custom_params": {"rpc": OPTIONS}},
        {"custom_params": {"rpc": OPTIONS, "other": 1}, "options": None},
        {"options": {"temperature": 0, "custom_params": {"rpc": OPTIONS}}},
        {"custom_params": {"other": 1}, "options": {"custom_params": {"rpc": OPTIONS}}},
    ],
)
def test_options_are_taken_from_the_body_or_its_options(body):
    assert handle(body) == OPTIONS


@pytest.mark.parametrize(
    "body", [{}, [], "text", {"custom_params": 5}, {"custom_params": {"other": 1}}, {"options": [1]}, {"rpc": OPTIONS}]
)
def test_other_bodies_hold_no_options(body):
    assert handle(body) is None


def respond(body, kwargs, original=None):
    """What the handler of /v1/responses saw: the options, and what its chat template is given."""

    async def handler(serving, model, raw_request):
        return raw_request.scope.get(SCOPE_KEY), model.chat_template_kwargs

    serving = SimpleNamespace(tokenizer_manager=manager(RPCConfig()))
    model = SimpleNamespace(chat_template_kwargs=kwargs)
    return asyncio.run(endpoints.take_from_responses(original or handler, serving, model, Body(body)))


def test_responses_take_the_alias_too():
    assert respond({}, {"rpc": OPTIONS, "x": 1}) == (OPTIONS, {"x": 1})
    assert respond({"custom_params": {"rpc": OPTIONS}}, {"rpc": OPTIONS}) == (OPTIONS, None)
    assert respond({"custom_params": {"rpc": OPTIONS}}, {"x": 1}) == (OPTIONS, {"x": 1})
    assert respond({}, {"x": 1}) == (None, {"x": 1})
    assert respond({}, None) == (None, None)


@pytest.mark.parametrize(
    ("body", "kwargs", "sentence"),
    [
        ({"custom_params": {"rpc": {}}}, {"rpc": OPTIONS}, "custom_params.rpc and chat_template_kwargs.rpc are one"),
        ({}, {"rpc": {"ratio": 1}}, "custom_params.rpc.ratio must be"),
        ({}, {"rpc": None}, "custom_params.rpc must be an object"),
    ],
)
def test_a_wrong_alias_never_reaches_the_handler(body, kwargs, sentence):
    async def handler(*args):
        raise AssertionError("reached")

    with pytest.raises(HTTPException, match=sentence) as raised:
        respond(body, kwargs, handler)
    assert raised.value.status_code == 400


def test_with_rpc_off_the_body_is_not_read():
    assert handle({"custom_params": {"rpc": "wrong"}}, config=None) is None


def test_malformed_options_never_reach_the_handler():
    async def handler(*args):
        raise AssertionError("reached")

    with pytest.raises(HTTPException) as raised:
        handle({"custom_params": {"rpc": {"ratio": 1}}}, original=handler)
    assert raised.value.status_code == 400
    assert raised.value.detail.startswith("custom_params.rpc.ratio must be")


def test_a_later_refusal_is_400_only_for_a_request_with_options():
    async def handler(*args):
        raise ValueError("does not fit")

    with pytest.raises(HTTPException, match="does not fit"):
        handle({"custom_params": {"rpc": OPTIONS}}, original=handler)
    with pytest.raises(ValueError, match="does not fit") as raised:
        handle({}, original=handler)
    assert not isinstance(raised.value, HTTPException)


def test_a_call_without_an_http_request_is_passed_on():
    async def handler(serving, model, raw_request):
        return raw_request, "passed"

    assert handle(None, original=handler) == (None, "passed")


class Results:
    """The results of TokenizerManager.generate_request; knows what it was called with and whether it was closed."""

    def __init__(self, *receipts):
        self.receipts, self.closed, self.seen = receipts, False, None

    def __call__(self, manager, obj, request):
        self.seen = obj.sampling_params
        return self.results()

    async def results(self):
        try:
            for receipt in self.receipts:
                yield {"meta_info": {} if receipt is None else {"rpc": receipt}}
        finally:
            self.closed = True


def request(options=None):
    return Request({"type": "http", **({} if options is None else {SCOPE_KEY: options})})


def test_options_are_laid_into_the_sampling_parameters_beside_what_is_there():
    results, params = Results(), {"temperature": 0, "custom_params": {"other": 1}}
    endpoints.carry_options(results, None, SimpleNamespace(sampling_params=params), request(OPTIONS))
    assert results.seen == {"temperature": 0, "custom_params": {"other": 1, "rpc": OPTIONS}}


@pytest.mark.parametrize("http", [None, request(), SimpleNamespace()])
def test_a_request_without_options_is_passed_on_as_it_is(http):
    untouched = SimpleNamespace()  # an embedding request may have no sampling_params at all
    passed = []
    endpoints.carry_options(lambda *args: passed.append(args), "manager", untouched, http)
    assert passed == [("manager", untouched, http)]
    assert not vars(untouched)


def test_the_receipt_of_the_last_result_stands_in_the_response_built_after_it():
    async def serve(results):
        response = SimpleNamespace(metadata={"mine": "kept"})
        carried = endpoints.carry_options(results, None, SimpleNamespace(sampling_params={}), request(OPTIONS))
        async for _ in carried:
            await asyncio.sleep(0)  # the others' turn
        endpoints.show_receipt(response, "request", {})
        return response.metadata

    async def two_at_once():
        return await asyncio.gather(serve(Results(None, {"n": 1})), serve(Results(None, {"n": 2})), serve(Results()))

    first, second, none = asyncio.run(two_at_once())
    assert (json.loads(first["rpc"]), json.loads(second["rpc"])) == ({"n": 1}, {"n": 2})
    assert first["mine"] == "kept"
    assert none == {"mine": "kept"}


def test_closing_early_closes_sglangs_generator():
    async def hang_up(results):
        carried = endpoints.carry_options(results, None, SimpleNamespace(sampling_params={}), request(OPTIONS))
        await anext(carried)
        await carried.aclose()
        return results.closed  # at once: SGLang's holds a lock that an update of the weights waits for

    assert asyncio.run(hang_up(Results(None, None)))
