"""The model and the pools."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from sglang_rpc.contract.refusals.facts import ServingFacts, gather_facts
from sglang_rpc.contract.refusals.model import MODEL_ROWS, WINDOW_OF_LAYER, refuse_model_runner
from sglang_rpc.contract.refusals.server import ATTENTION_BACKENDS
from sglang_rpc.errors import IncompatibleSGLangError, UnsupportedError
from tests.unit.refusals.examples import (
    CONFIG,
    MODEL_EXAMPLES,
    assert_refused,
)


@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_plain_facts_pass(aggregation):
    refuse_model_runner(ServingFacts(), replace(CONFIG, aggregation=aggregation))
    refuse_model_runner(ServingFacts(tree="UnifiedRadixCache"), replace(CONFIG, aggregation=aggregation))


def test_replicated_kv_heads_are_fine_when_all_heads_keep_the_same():
    refuse_model_runner(ServingFacts(tp_size=8, total_kv_heads=4), replace(CONFIG, aggregation="all"))
    refuse_model_runner(ServingFacts(tp_size=4, total_kv_heads=4), replace(CONFIG, aggregation="group"))


def test_a_trace_of_what_every_rank_keeps_alike_is_fine():
    for aggregation, tp_size in (("all", 2), ("group", 1)):
        facts = ServingFacts(tp_size=tp_size, total_kv_heads=4)
        refuse_model_runner(facts, replace(CONFIG, aggregation=aggregation, trace="traces"))


@pytest.mark.parametrize("row", MODEL_ROWS, ids=lambda row: row.name)
def test_model_row(row):
    facts, named = MODEL_EXAMPLES[row.name]
    policies = {"policy_on_latents": "h2o", "policy_on_split_heads": "rkv", "window_policy": "lightthinker"}
    policy = policies.get(row.name, "rpc")
    aggregation = "group" if row.name in ("replicated_kv_heads", "trace_of_split_heads") else "all"
    trace = "traces" if row.name.startswith("trace_of_") else None
    config = replace(CONFIG, aggregation=aggregation, policy=policy, trace=trace)
    with pytest.raises(UnsupportedError) as caught:
        refuse_model_runner(ServingFacts(**facts), config)
    assert_refused(caught.value, row, named)


class UnifiedRadixCache:
    """As much of SGLang's as the facts read."""

    cache_controller = None
    linker = None


class HybridReqToTokenPool:
    """As much of SGLang's as the facts read."""

    _aux_cache = None


def test_facts_of_a_model_runner(model_runner):
    facts = gather_facts(model_runner)
    assert facts == ServingFacts(
        model="Qwen2ForCausalLM",
        decoder_layers=3,
        pool_layers=3,
        total_kv_heads=2,
        tp_size=2,
        query_heads=4,
        total_query_heads=4,
        kv_dtype="float32",
    )
    refuse_model_runner(facts, CONFIG)


def test_facts_of_a_scheduler(model_runner):
    scheduler = SimpleNamespace(tp_worker=SimpleNamespace(model_runner=model_runner), tree_cache=UnifiedRadixCache())
    facts = gather_facts(scheduler)
    assert facts.tree == "UnifiedRadixCache"
    assert not facts.host_tier
    assert not facts.linked
    refuse_model_runner(facts, CONFIG)
    scheduler.tree_cache.cache_controller = object()
    with_host_memory = gather_facts(scheduler)
    assert with_host_memory.host_tier
    refuse_model_runner(with_host_memory, CONFIG)
    scheduler.tree_cache.linker = object()
    with pytest.raises(UnsupportedError, match="linked to an external store"):
        refuse_model_runner(gather_facts(scheduler), CONFIG)


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (dict(sliding_window_size=1057), "window_attention"),
        (dict(is_cross_attention=True), "other_attention"),
        (dict(xai_temperature_len=1024), "distance_attention"),
        (dict(pos_encoding_mode="ALIBI"), "distance_attention"),
        (dict(logit_cap=30.0, logit_capping_method="sigmoid"), "logit_capping"),
        (dict(layer_id=0), "shared_kv"),
        (dict(tp_q_head_num=8), "head_shapes"),
    ],
    ids=str,
)
def test_facts_see_one_odd_layer(change, row, model_runner):
    for name, value in change.items():
        setattr(model_runner.model[1], name, value)
    applies = {r.name: r for r in MODEL_ROWS}[row]
    assert applies.given(gather_facts(model_runner), CONFIG)


def test_a_layer_attends_within_chunks_where_the_model_has_a_size_of_chunks(model_runner):
    """Muse Spark's layers carry the mark of Llama 4's, and no chunk has a size."""
    model_runner.model[1].use_irope = True
    assert gather_facts(model_runner).chunked_layers == 0
    refuse_model_runner(gather_facts(model_runner), CONFIG)
    model_runner.attention_chunk_size = 8192
    assert gather_facts(model_runner).chunked_layers == 1
    with pytest.raises(UnsupportedError, match="1 layers of chunked attention"):
        refuse_model_runner(gather_facts(model_runner), CONFIG)


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("speculates", [False, True])
def test_whether_a_verify_leaves_states_pending(model_runner, pending, speculates):
    """Asked only where there are recurrent layers, and drafts."""
    assert not gather_facts(model_runner).states_pending
    model_runner.req_to_token_pool = HybridReqToTokenPool()
    algorithm = "EAGLE" if speculates else None
    model_runner.server_args = SimpleNamespace(speculative_algorithm=algorithm, speculative_eagle_topk=None)
    pool = SimpleNamespace(accept_lens_pool=object() if pending else None)
    model_runner.attn_backend = SimpleNamespace(linear_attn_backend=pool)
    assert gather_facts(model_runner).states_pending == (pending and speculates)


@pytest.mark.parametrize(
    ("algorithm", "breadth", "line"), [("NGRAM", 1, True), ("NGRAM", 2, False), ("EAGLE", 1, False)]
)
def test_whether_drafts_of_earlier_text_are_taken_for_a_line(model_runner, algorithm, breadth, line):
    model_runner.server_args = SimpleNamespace(speculative_algorithm=algorithm, speculative_eagle_topk=breadth)
    assert gather_facts(model_runner).drafts_in_a_line == line


def test_windows_that_compressions_leave_whole_are_no_obstacle(model_runner):
    model_runner.model[1].sliding_window_size = 1056
    model_runner.model[1].tp_q_head_num = 8  # of a window layer no query is recorded
    model_runner.sliding_window_size = 1056
    facts = gather_facts(model_runner)
    assert (facts.window_layers, facts.reach, facts.other_windows, facts.head_shapes) == (1, 1056, 0, 1)
    for backend in ATTENTION_BACKENDS:
        refuse_model_runner(replace(facts, decode_backend=backend, prefill_backend=backend), CONFIG)
    refuse_model_runner(facts, replace(CONFIG, policy="h2o"))


@pytest.mark.parametrize("told", [None, 1055])
@pytest.mark.parametrize("phase", ["decode_backend", "prefill_backend"])
def test_a_backend_must_know_each_layers_window(told, phase, model_runner):
    model_runner.model[1].sliding_window_size = 1056
    model_runner.sliding_window_size = told
    facts = gather_facts(model_runner)
    for backend in ATTENTION_BACKENDS:
        served = replace(facts, **{phase: backend})
        if backend in WINDOW_OF_LAYER:
            refuse_model_runner(served, CONFIG)
        else:
            with pytest.raises(UnsupportedError, match=rf"{backend} .* the window of 1 layers.*attention-backend fa3"):
                refuse_model_runner(served, CONFIG)


def test_a_model_of_windows_alone_is_refused(model_runner):
    for layer in model_runner.model:
        layer.sliding_window_size = 100
    with pytest.raises(UnsupportedError, match="whose 3 layers all have windows"):
        refuse_model_runner(gather_facts(model_runner), CONFIG)


def test_a_tanh_cap_is_no_obstacle(model_runner):
    model_runner.model[1].logit_cap = 30.0
    refuse_model_runner(gather_facts(model_runner), CONFIG)


def test_facts_of_latent_attention(latent_runner):
    facts = gather_facts(latent_runner)
    assert facts.latent_attention
    assert facts.kv_pool == "MLATokenToKVPool"
    assert facts.decoder_layers == facts.pool_layers == 2
    assert facts.head_shapes == 1
    assert facts.shared_kv == 0
    refuse_model_runner(facts, CONFIG)
    refuse_model_runner(replace(facts, tp_size=1), replace(CONFIG, policy="rkv"))
    with pytest.raises(UnsupportedError, match="--rpc-policy rkv with --tp-size 2"):
        refuse_model_runner(facts, replace(CONFIG, policy="rkv"))
    refuse_model_runner(replace(facts, speculates=True), CONFIG)
    # Its one latent is on every rank, and all ranks keep the same ones.
    refuse_model_runner(replace(facts, tp_size=8), replace(CONFIG, aggregation="group"))


def test_latent_attention_of_another_kind_is_refused(latent_runner):
    class Other(type(latent_runner.model[0])):
        def dispatch_attn_forward_method(self, forward_batch):
            return None

    latent_runner.model.append(Other(2))
    assert gather_facts(latent_runner).own_dispatch == 1


def test_layers_that_do_not_read_the_latents_are_missed(latent_runner):
    latent_runner.model[0].attn_mqa.qk_head_dim = 24
    with pytest.raises(UnsupportedError, match="1 attention layers for 2"):
        refuse_model_runner(gather_facts(latent_runner), CONFIG)


def test_layers_that_modules_does_not_list_are_missed(model_runner):
    """SGLang's Transformers backend keeps its attention in a plain dict."""
    import torch

    model_runner.model = torch.nn.Module()
    with pytest.raises(UnsupportedError, match="0 attention layers for 3"):
        refuse_model_runner(gather_facts(model_runner), CONFIG)


def test_a_fact_that_moved_is_said_so(model_runner):
    del model_runner.use_mla_backend
    with pytest.raises(IncompatibleSGLangError, match="use_mla_backend"):
        gather_facts(model_runner)
