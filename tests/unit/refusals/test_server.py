"""The server's arguments and environment."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from sglang_rpc.contract import versions
from sglang_rpc.contract.refusals.server import APP_VARIABLE, ATTENTION_BACKENDS, HTTP_APP, SGLANG_APP
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
        {"disaggregation_mode": "decode"},
        {"disaggregation_mode": "decode", "disaggregation_decode_retraction_backup": "cpu_tensor"},
        {"disaggregation_mode": "decode", "disaggregation_decode_retraction_backup": "none"},
        {"pp_size": 2},
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


@pytest.mark.parametrize("app", ["", SGLANG_APP, HTTP_APP])
@pytest.mark.parametrize("fixed", [False, True])
def test_http_workers_work_where_the_app_that_they_import_can_be_named(monkeypatch, app, fixed):
    if app:
        monkeypatch.setenv(APP_VARIABLE, app)
    version = replace(versions.current(), absent_variables=frozenset({APP_VARIABLE} if fixed else ()))
    monkeypatch.setattr(versions, "current", lambda: version)
    arguments = SimpleNamespace(**{**PLAIN, "tokenizer_worker_num": 2})
    if not fixed:
        refuse_arguments(arguments)
        return
    with pytest.raises(UnsupportedError, match=f"--tokenizer-worker-num 2 with SGLang {version.name} does not work"):
        refuse_arguments(arguments)


def test_another_app_is_nothing_to_a_server_without_http_workers(monkeypatch):
    monkeypatch.setenv(APP_VARIABLE, "mine:app")
    refuse_arguments(SimpleNamespace(**PLAIN))


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
