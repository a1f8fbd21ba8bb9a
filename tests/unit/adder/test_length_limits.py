"""Lengths on arrival: what SGLang serves is not refused, and what it cannot hold is."""

from __future__ import annotations

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks.limits import fit_to_pool, refuse_prompt
from sglang_rpc.runtime.request_state import RequestState
from tests.unit.adder.pool import POOL, Pool, arriving, everywhere, request

#: Not due before a request of SGLang's own limit has ended.
SELDOM = RPCConfig(interval=4096, window=32, scope="all")


@everywhere
def test_what_sglang_serves_uncompressed_is_not_refused(page):
    options = RequestOptions.from_custom_params(None, SELDOM, knows_markers=False)
    for prompt in (1, 15, 16, 17, 20, 32, 288):
        req = request(page, prompt, False, False)
        served = req.sampling_params.max_new_tokens
        req.rpc = RequestState(options)
        fit_to_pool(arriving(page), req, req.rpc, served, 0)
        assert req.sampling_params.max_new_tokens == served and (served == 0 or Pool(page).admits(req))
        fit_to_pool(arriving(page), req, req.rpc, None, 0)
        assert req.sampling_params.max_new_tokens >= served


@everywhere
@pytest.mark.parametrize("tokens", [0, 1])
def test_a_prompt_is_refused_or_admitted(page, tokens):
    refused = []
    for prompt in range(POOL - 3 * page - 8, POOL - 6):
        req = request(page, prompt, False, False)
        req.sampling_params.max_new_tokens = tokens
        try:
            refuse_prompt(arriving(page), req)
        except ConfigError as error:
            refused.append(prompt)
            assert f"shorten it to {POOL - max(2, page) - 1}," in str(error)
        else:
            assert Pool(page).admits(req), prompt
    assert refused == list(range(POOL - max(2, page) + 1 - tokens, POOL - 6))
