"""What `--rpc-reuse` cannot work with; the same server without it can."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.refusals.facts import ServingFacts
from sglang_rpc.contract.refusals.model import refuse_model_runner
from sglang_rpc.contract.refusals.reuse import REUSE_MODEL_ROWS, REUSE_ROWS
from sglang_rpc.contract.refusals.row import refuse
from sglang_rpc.contract.refusals.server import Arguments
from sglang_rpc.contract.refusals.server import resolved as resolve
from sglang_rpc.contract.settings import attach, attach_and_refuse
from sglang_rpc.errors import UnsupportedError
from tests.unit.refusals.examples import ROOT, assert_refused

SHARE, OFF = RPCConfig(reuse="share"), RPCConfig()
TEXT = RPCConfig(reuse="share", reuse_text=8)
PLAIN = dict(
    disaggregation_mode="null",
    skip_tokenizer_init=False,
    enable_tokenizer_batch_encode=False,
    disable_radix_cache=False,
    strip_thinking_cache=False,
    enable_hierarchical_cache=False,
    enable_watermark=False,
    enable_two_batch_overlap=False,
    pp_size=1,
    attn_dp_size=1,
)
SERVER = {
    "reuse_in_disaggregation": (
        {"disaggregation_mode": "decode", "disable_radix_cache": True},
        SHARE,
        "--rpc-reuse share with --disaggregation-mode decode",
    ),
    "reuse_without_tree": ({"disable_radix_cache": True}, SHARE, "--disable-radix-cache"),
    "reuse_without_thoughts": ({"strip_thinking_cache": True}, SHARE, "--strip-thinking-cache"),
    "reuse_with_watermarks": ({"enable_watermark": True}, SHARE, "--enable-watermark"),
    "reuse_in_halves": ({"enable_two_batch_overlap": True}, SHARE, "--enable-two-batch-overlap"),
    "reuse_in_pipelines": ({"pp_size": 2}, SHARE, "--pp-size 2"),
    "reuse_with_dp_attention": ({"attn_dp_size": 2}, SHARE, "--attn-dp-size 2"),
    "reuse_with_host_tier": ({"enable_hierarchical_cache": True}, SHARE, "--enable-hierarchical-cache"),
    "reuse_of_gists": (
        {},
        RPCConfig(reuse="share", policy="lightthinker", gist_tokens=(5,)),
        "--rpc-policy lightthinker",
    ),
    "reuse_of_text_without_tokenizer": ({"skip_tokenizer_init": True}, TEXT, "--skip-tokenizer-init"),
    "reuse_of_text_in_batches": ({"enable_tokenizer_batch_encode": True}, TEXT, "--enable-tokenizer-batch-encode"),
}
MODEL = {
    "reuse_of_window_pools": (
        dict(kv_pool="SWAKVPool", window_layers=1, decoder_layers=2, pool_layers=2, reach=31),
        "a KV pool of their own",
    ),
    "reuse_beside_recurrence": (dict(row_pool="HybridReqToTokenPool"), "which has recurrent layers"),
}


def test_every_row_has_an_example():
    assert [row.name for row in REUSE_ROWS] == list(SERVER)
    assert [row.name for row in REUSE_MODEL_ROWS] == list(MODEL)


def test_a_plain_server_and_model_pass():
    refuse(REUSE_ROWS, Arguments(SimpleNamespace(**PLAIN), {}), SHARE)
    refuse_model_runner(ServingFacts(), SHARE)


@pytest.mark.parametrize("row", REUSE_ROWS, ids=lambda row: row.name)
def test_a_server_is_refused(row):
    given, config, named = SERVER[row.name]
    with pytest.raises(UnsupportedError) as caught:
        refuse(REUSE_ROWS, Arguments(SimpleNamespace(**{**PLAIN, **given}), {}), config)
    assert_refused(caught.value, row, named)
    assert "--rpc-reuse share" in str(caught.value)


@pytest.mark.parametrize("row", REUSE_MODEL_ROWS, ids=lambda row: row.name)
def test_a_model_is_refused_for_its_reuse_alone(row):
    facts, named = MODEL[row.name]
    refuse_model_runner(ServingFacts(**facts), OFF)
    with pytest.raises(UnsupportedError) as caught:
        refuse_model_runner(ServingFacts(**facts), SHARE)
    assert_refused(caught.value, row, named)


def test_latents_and_windows_of_the_plain_pool_are_served():
    refuse_model_runner(ServingFacts(latent_attention=True, kv_pool="MLATokenToKVPool"), SHARE)
    windows = dict(window_layers=1, decoder_layers=2, pool_layers=2, reach=31)
    refuse_model_runner(ServingFacts(**windows), SHARE)


@pytest.mark.parametrize("row", REUSE_ROWS, ids=lambda row: row.name)
def test_real_arguments_are_refused(row, sglang_arguments):
    """Every name that a row reads is one of SGLang's."""
    given, config, named = SERVER[row.name]
    server_args = sglang_arguments(model_path="dummy", **given)
    with pytest.raises(UnsupportedError, match=named):
        refuse(REUSE_ROWS, resolve(server_args), config)


def test_before_a_process_starts(resolved):
    from sglang.srt.arg_groups.overrides import declare_resolution

    attach(resolved, SHARE)
    attach_and_refuse(None, resolved)
    declare_resolution(resolved, "test", disable_radix_cache=True)
    with pytest.raises(UnsupportedError, match="--rpc-reuse share with --disable-radix-cache"):
        attach_and_refuse(None, resolved)
    attach(resolved, OFF)
    attach_and_refuse(None, resolved)


def test_the_page_has_every_row():
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    for row in (*REUSE_ROWS, *REUSE_MODEL_ROWS):
        assert f"| `unsupported.{row.name}` | {row.switches} | {row.why} | {row.way_out} |" in page
