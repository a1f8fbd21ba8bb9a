"""The server's arguments and environment."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sglang_rpc.contract.refusals.server import ATTENTION_BACKENDS
from sglang_rpc.errors import IncompatibleSGLangError, UnsupportedError
from tests.unit.refusals.examples import (
    MIXED,
    PLAIN,
    SERVER_CASES,
    assert_refused,
    graphs,
    refuse_arguments,
    split_environment,
)


def test_plain_arguments_pass():
    refuse_arguments(SimpleNamespace(**PLAIN))


@pytest.mark.parametrize(
    "change",
    [
        *({"attention_backend": name} for name in ATTENTION_BACKENDS),
        {"attention_backend": None},
        *({"kv_cache_dtype": name} for name in ("bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2")),
        {"device": "cpu"},
        {"device": None},
        {"model_impl": "sglang"},
        {"enable_mixed_chunk": True, "cuda_graph_config": graphs("disabled")},
        {"enable_mixed_chunk": True, "cuda_graph_config": None},
        {**MIXED, "chunked_prefill_size": -1},
        {"SGLANG_USE_HND_KVCACHE": "false"},
        {"SGLANG_AITER_KV_CACHE_LAYOUT": "nhd"},
        {"SGLANG_RUST_SERVER": "0"},
    ],
    ids=str,
)
def test_what_works_passes(change, monkeypatch):
    refuse_arguments(SimpleNamespace(**{**PLAIN, **split_environment(monkeypatch, change)}))


@pytest.mark.parametrize(("row", "given", "named"), SERVER_CASES)
def test_server_row(row, given, named, monkeypatch):
    arguments = SimpleNamespace(**{**PLAIN, **split_environment(monkeypatch, given)})
    with pytest.raises(UnsupportedError) as caught:
        refuse_arguments(arguments)
    assert_refused(caught.value, row, named)


def test_an_argument_that_is_gone_is_not_taken_for_off():
    known = {name: value for name, value in PLAIN.items() if name != "enable_lmcache"}
    with pytest.raises(IncompatibleSGLangError, match="enable_lmcache"):
        refuse_arguments(SimpleNamespace(**known))
