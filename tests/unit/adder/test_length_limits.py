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
        assert req.sampling_params.max_new_tokens == served
        assert served == 0 or Pool(page).admits(req)
        fit_to_pool(arriving(page), req, req.rpc, None, 0)
        assert req.sampling_params.max_new_tokens >= served


@everywhere
@pytest.mark.parametrize("tokens", [0, 1])
def test_a_prompt_is_refused_or_admitted(page, tokens):
    first_refused = POOL - max(2, page) + 1 - tokens
    for prompt in range(POOL - 3 * page - 8, POOL - 6):
        req = request(page, prompt, False, False)
        req.sampling_params.max_new_tokens = tokens
        if prompt < first_refused:
            refuse_prompt(arriving(page), req)
            assert Pool(page).admits(req), prompt
        else:
            with pytest.raises(ConfigError, match=f"shorten it to {POOL - max(2, page) - 1},"):
                refuse_prompt(arriving(page), req)
