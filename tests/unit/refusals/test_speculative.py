"""What speculative decoding cannot work with beside compression; the same server without drafts can."""

from __future__ import annotations

import contextlib
import pickle
from types import SimpleNamespace

import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.refusals.draft import DRAFT_ROWS, DraftFacts
from sglang_rpc.contract.refusals.facts import ServingFacts, drafts_branch
from sglang_rpc.contract.refusals.model import refuse_model_runner
from sglang_rpc.contract.refusals.row import refuse
from sglang_rpc.contract.refusals.server import Arguments
from sglang_rpc.contract.refusals.server import resolved as resolve
from sglang_rpc.contract.refusals.speculative import ALGORITHMS, SPECULATIVE_MODEL_ROWS, SPECULATIVE_ROWS
from sglang_rpc.contract.settings import attach, attach_and_refuse
from sglang_rpc.contract.windows import ALLOCATOR, POOL
from sglang_rpc.errors import UnsupportedError
from sglang_rpc.startup import cpu
from tests.unit.refusals.examples import ROOT, assert_refused

USUAL = RPCConfig()
PLAIN = dict(
    speculative_algorithm="STANDALONE",
    speculative_eagle_topk=1,
    enable_multi_layer_eagle=False,
    speculative_adaptive=False,
    speculative_use_rejection_sampling=False,
    speculative_draft_window_size=None,
    enable_watermark=False,
    enable_mixed_chunk=False,
    speculative_draft_attention_backend=None,
    pp_size=1,
    attn_dp_size=1,
    enable_two_batch_overlap=False,
    disaggregation_mode="null",
    enable_hierarchical_cache=False,
)
SERVER = {
    "speculative_decoding": ({"speculative_algorithm": "DFLASH"}, USUAL, "--speculative-algorithm DFLASH"),
    "speculative_layers": ({"enable_multi_layer_eagle": True}, USUAL, "--enable-multi-layer-eagle"),
    "speculative_adaptive": ({"speculative_adaptive": True}, USUAL, "--speculative-adaptive"),
    "speculative_rejection": (
        {"speculative_use_rejection_sampling": True},
        USUAL,
        "--speculative-use-rejection-sampling",
    ),
    "speculative_window": ({"speculative_draft_window_size": 1}, USUAL, "--speculative-draft-window-size 1"),
    "speculative_watermark": ({"enable_watermark": True}, USUAL, "--enable-watermark"),
    "speculative_mixed_chunk": ({"enable_mixed_chunk": True}, USUAL, "--enable-mixed-chunk"),
    "speculative_backend": (
        {"speculative_draft_attention_backend": "trtllm_mha"},
        USUAL,
        "--speculative-draft-attention-backend trtllm_mha",
    ),
    "speculative_in_pipelines": ({"pp_size": 2}, USUAL, "--pp-size 2"),
    "speculative_with_dp_attention": ({"attn_dp_size": 2}, USUAL, "--attn-dp-size 2"),
    "speculative_in_halves": ({"enable_two_batch_overlap": True}, USUAL, "--enable-two-batch-overlap"),
    "speculative_in_disaggregation": ({"disaggregation_mode": "decode"}, USUAL, "--disaggregation-mode decode"),
    "speculative_with_host_tier": ({"enable_hierarchical_cache": True}, USUAL, "--enable-hierarchical-cache"),
    "speculative_reuse": ({}, RPCConfig(reuse="share"), "--rpc-reuse share"),
    "speculative_gists": ({}, RPCConfig(policy="lightthinker", gist_tokens=(5,)), "--rpc-policy lightthinker"),
    "speculative_accumulation": ({}, RPCConfig(policy="h2o"), "--rpc-policy h2o"),
}
WINDOWS = dict(window_layers=1, decoder_layers=2, pool_layers=2, reach=31)
MODEL = {
    "speculative_recurrent_latents": (
        dict(row_pool="HybridReqToTokenPool", latent_attention=True, kv_pool="MLATokenToKVPool"),
        "beside recurrent layers",
    ),
    "speculative_latents": (
        dict(latent_attention=True, kv_pool="MLATokenToKVPool", prefill_backend="flashinfer", drafts_branch=True),
        "latent attention",
    ),
    "speculative_states": (dict(row_pool="HybridReqToTokenPool", states_pending=True), "recurrent states"),
    "speculative_states_in_a_line": (
        dict(row_pool="HybridReqToTokenPool", drafts_in_a_line=True),
        "earlier text of breadth 1",
    ),
    "speculative_windows": (
        dict(**WINDOWS, kv_pool=POOL, allocator=ALLOCATOR),
        "KV pool of their own",
    ),
    "speculative_windows_on_flashinfer": (dict(**WINDOWS, prefill_backend="flashinfer"), "on flashinfer"),
    "speculative_windows_in_trees": (dict(**WINDOWS, prefill_backend="triton", drafts_branch=True), "that branch"),
}

DRAFT = {
    "draft_pool": (dict(pool="SWAKVPool"), "SWAKVPool"),
    "draft_windows": (dict(windows=2), "2 sliding-window layers"),
    "draft_shapes": (dict(shapes=2), "2 shapes"),
    "draft_latents": (dict(latents=True, own_dispatch=1), "of its own kind"),
    "draft_latents_on_rocm": (dict(latents=True, rocm=True), "on ROCm"),
}


def arguments(given: dict) -> Arguments:
    return Arguments(SimpleNamespace(**{**PLAIN, **given}), {})


def test_every_row_has_an_example():
    assert [row.name for row in SPECULATIVE_ROWS] == list(SERVER)
    assert [row.name for row in SPECULATIVE_MODEL_ROWS] == list(MODEL)
    assert [row.name for row in DRAFT_ROWS] == list(DRAFT)


@pytest.mark.parametrize("row", DRAFT_ROWS, ids=lambda row: row.name)
def test_a_draft_is_refused(row):
    given, named = DRAFT[row.name]
    refuse(DRAFT_ROWS, DraftFacts())
    with pytest.raises(UnsupportedError) as caught:
        refuse(DRAFT_ROWS, DraftFacts(**given))
    assert_refused(caught.value, row, named)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("backend", [None, "fa3", "triton", "flashinfer"])
def test_a_plain_server_and_model_pass(algorithm, backend):
    given = {"speculative_algorithm": algorithm, "speculative_draft_attention_backend": backend}
    refuse(SPECULATIVE_ROWS, arguments(given), USUAL)
    refuse_model_runner(ServingFacts(speculates=True), USUAL)


@pytest.mark.parametrize("row", SPECULATIVE_ROWS, ids=lambda row: row.name)
def test_a_server_is_refused(row):
    given, config, named = SERVER[row.name]
    with pytest.raises(UnsupportedError) as caught:
        refuse(SPECULATIVE_ROWS, arguments(given), config)
    assert_refused(caught.value, row, named)
    assert "--speculative-algorithm" in str(caught.value)


@pytest.mark.parametrize("row", SPECULATIVE_MODEL_ROWS, ids=lambda row: row.name)
def test_a_model_is_refused_for_its_drafts_alone(row):
    facts, named = MODEL[row.name]
    refuse_model_runner(ServingFacts(**facts), USUAL)
    with pytest.raises(UnsupportedError) as caught:
        refuse_model_runner(ServingFacts(**facts, speculates=True), USUAL)
    assert_refused(caught.value, row, named)


@pytest.mark.parametrize(
    ("facts", "refused"),
    [
        (dict(prefill_backend="fa3"), False),
        (dict(decode_backend="fa3", page=16), True),
        (dict(prefill_backend="triton"), True),
        (dict(page=16), False),
        (dict(prefill_backend="triton", drafts_branch=False), False),
        (dict(prefill_backend="fa3", page=16, drafts_branch=False), False),
    ],
)
def test_windows_of_branches_work_where_sglang_counts_along_them(facts, refused):
    given = ServingFacts(**{**WINDOWS, "drafts_branch": True, "speculates": True, **facts})
    with pytest.raises(UnsupportedError, match="from drafts that branch") if refused else contextlib.nullcontext():
        refuse_model_runner(given, USUAL)


@pytest.mark.parametrize(
    ("given", "branch"),
    [({}, False), ({"speculative_eagle_topk": 2}, True), ({"speculative_algorithm": "NGRAM"}, True)],
)
def test_which_drafts_branch(given, branch):
    assert drafts_branch(SimpleNamespace(**{**PLAIN, **given})) is branch


@pytest.mark.parametrize(
    ("given", "branch"),
    [({"speculative_algorithm": "EAGLE"}, True), ({"speculative_algorithm": "ngram"}, True), ({}, False)],
    ids=["a tree, where SGLang is to choose", "ngram in lower case", "STANDALONE"],
)
def test_what_sglang_decides_counts(sglang_arguments, given, branch):
    """Not what was typed: a draft of EAGLE for a Llama branches unless told not to."""
    reasoner = str(ROOT / "eval" / "reasoner" / "model")
    given = {"speculative_algorithm": "STANDALONE", "speculative_draft_model_path": reasoner, **given}
    server_args = sglang_arguments(
        model_path=reasoner, skip_tokenizer_init=True, page_size=1, **{**cpu.server_defaults(), **given}
    )
    server_args.resolve_once()
    assert drafts_branch(server_args) is branch
    assert drafts_branch(pickle.loads(pickle.dumps(server_args))) is branch  # as a scheduler gets them


@pytest.mark.parametrize(
    "facts", [dict(drafts_branch=False), dict(prefill_backend="fa3"), dict(latent_attention=False)]
)
def test_other_drafts_of_latents_and_on_flashinfer_pass(facts):
    refused, _ = MODEL["speculative_latents"]
    refuse_model_runner(ServingFacts(**{**refused, **facts}, speculates=True), USUAL)


@pytest.mark.parametrize("row", SPECULATIVE_ROWS, ids=lambda row: row.name)
def test_real_arguments_are_refused(row, sglang_arguments):
    """Every name that a row reads is one of SGLang's, and each row stands before those that would hide it."""
    given, config, named = SERVER[row.name]
    server_args = sglang_arguments(model_path="dummy", **{**PLAIN, **given})
    with pytest.raises(UnsupportedError, match=named):
        refuse(SPECULATIVE_ROWS, resolve(server_args), config)


def test_before_a_process_starts(resolved):
    from sglang.srt.arg_groups.overrides import declare_resolution

    attach(resolved, USUAL)
    declare_resolution(resolved, "test", **PLAIN)
    attach_and_refuse(None, resolved)
    declare_resolution(resolved, "test", speculative_adaptive=True)
    with pytest.raises(UnsupportedError, match="remove --speculative-adaptive"):
        attach_and_refuse(None, resolved)
    attach(resolved, None)
    attach_and_refuse(None, resolved)


def test_the_page_has_every_row():
    page = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    for row in (*SPECULATIVE_ROWS, *SPECULATIVE_MODEL_ROWS, *DRAFT_ROWS):
        assert f"| `unsupported.{row.name}` | {row.switches} | {row.why} | {row.way_out} |" in page
