"""Speculative decoding on a CUDA device: graphs, and attention backends that take positions of draft steps for row
lengths. There, logical positions would leave outputs as they are, and spoil every draft of a compressed row."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine import dense, latent, on_cuda, recurrent, recurrent_drafts, test_recurrent
from tests.engine.engines import assert_balanced, engine, look_inside, with_and_without
from tests.engine.oracle import Oracle, Rule
from tests.engine.speculative import AHEAD, branching, drafting, eagle_of, one_layer
from tests.engine.test_gpu import mean_gap

pytestmark = pytest.mark.gpu

BACKENDS = on_cuda.attention_backends(os.environ.get("SGLANG_RPC_GPU_BACKENDS"))
RULE = Rule(interval=96, window=16, ratio=4)
TOKENS = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Of one layer: a draft of the same weights then keeps what the model keeps."""
    folder = tmp_path_factory.mktemp("one-layer")
    return one_layer(dense.write_model(folder / "like"), folder / "model")


def receipts_of_what_follows(
    oracle: Oracle, prompts: list[list[int]], results: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Of those that `with_and_without` compresses, whose tokens follow from what the oracle keeps, all on time."""
    compressed, alone = mean_gap(oracle, prompts, results[:8], RULE), mean_gap(oracle, prompts, results[8:], None)
    otherwise = mean_gap(oracle, prompts, results[:8], None)
    assert compressed <= alone + 0.05 * otherwise
    receipts = [result["meta_info"]["rpc"] for result in results[:8]]
    compressions = (TOKENS - 1 - RULE.window) // RULE.interval
    assert [(receipt["compressions"], receipt["late"]) for receipt in receipts] == [(compressions, 0)] * 8
    return receipts


@pytest.mark.parametrize(
    ("algorithm", "page", "graphs", "ahead"),
    [
        ("STANDALONE", 1, True, {}),
        ("STANDALONE", 1, True, AHEAD),
        ("STANDALONE", 16, False, {}),
        ("STANDALONE", 16, False, AHEAD),
        ("EAGLE", 16, True, {}),
        ("EAGLE", 16, True, AHEAD),
    ],
    ids=[
        *("standalone-graphs", "standalone-graphs-overlap", "standalone-eager", "standalone-eager-overlap"),
        *("eagle-graphs", "eagle-graphs-overlap"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_drafts_are_as_good_after_a_compression(model, tmp_path, backend, algorithm, page, graphs, ahead):
    if reason := on_cuda.lacks(torch.cuda.get_device_capability(), backend, "auto", latents=False):
        pytest.skip(reason)
    draft = model if algorithm == "STANDALONE" else eagle_of(model, tmp_path / "draft")
    rpc = RPCConfig(interval=RULE.interval, window=RULE.window, ratio=RULE.ratio, scope="all")
    args = drafting(draft, 4, speculative_algorithm=algorithm, page_size=page, attention_backend=backend, **ahead)
    if not graphs:
        args["cuda_graph_backend_decode"] = "disabled"
    with engine(model, rpc, device="cuda", dtype="bfloat16", **args) as running:
        prompts, results = with_and_without(running, TOKENS)
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert (seen["launched_ahead"] > sum(seen["decodes"].values()) / 2) == bool(ahead)
    for receipt in receipts_of_what_follows(Oracle(model), prompts, results):
        assert receipt["tokens_per_step"] > 2  # or this test says nothing
        assert receipt["tokens_per_step_compressed"] > 0.7 * receipt["tokens_per_step"]


@pytest.mark.parametrize(("graphs", "ahead"), [(True, AHEAD), (False, {})], ids=["graphs-overlap", "eager"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_drafts_of_latents(tmp_path, backend, graphs, ahead):
    """Latent attention (MLA), whose queries come in two parts on some backends: of a verify, and of the step after it.

    Of three layers with random weights, the model as its own draft keeps other latents than it keeps itself."""
    if reason := on_cuda.lacks(torch.cuda.get_device_capability(), backend, "auto", latents=True):
        pytest.skip(reason)
    model = latent.write_model(tmp_path / "latent", latent.DEEPSEEK)
    rpc = RPCConfig(interval=RULE.interval, window=RULE.window, ratio=RULE.ratio, scope="all")
    args = drafting(model, 4, attention_backend=backend, **ahead)
    if not graphs:
        args["cuda_graph_backend_decode"] = "disabled"
    with engine(model, rpc, device="cuda", dtype="bfloat16", **args) as running:
        prompts, results = with_and_without(running, TOKENS)
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    for receipt in receipts_of_what_follows(latent.LatentOracle(model), prompts, results):
        assert receipt["tokens_per_step"] > 2
        assert receipt["tokens_per_step_compressed"] > 1.2  # 1 where positions spoil drafts


@pytest.mark.parametrize(("graphs", "ahead"), [(True, {}), (True, AHEAD), (False, {})])
@pytest.mark.parametrize("backend", BACKENDS)
def test_drafts_of_earlier_text_branch(model, tmp_path, backend, graphs, ahead):
    """The queries of siblings are written in the graph, and those that were accepted move after it."""
    if reason := on_cuda.lacks(torch.cuda.get_device_capability(), backend, "auto", latents=False):
        pytest.skip(reason)
    rpc = RPCConfig(interval=RULE.interval, window=RULE.window, ratio=RULE.ratio, scope="all")
    args = drafting(None, 6, attention_backend=backend, page_size=1, **ahead)
    if not graphs:
        args["cuda_graph_backend_decode"] = "disabled"
    with engine(model, rpc, device="cuda", dtype="bfloat16", **args) as running:
        with_and_without(running, TOKENS)
        prompts, results = with_and_without(running, TOKENS)  # once more, so that texts are known
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    for receipt in receipts_of_what_follows(Oracle(model), prompts, results):
        assert receipt["tokens_per_step_compressed"] > 1.5


@pytest.mark.parametrize(
    ("algorithm", "page", "graphs", "ahead"),
    [("STANDALONE", 1, True, AHEAD), ("STANDALONE", 16, False, {}), ("EAGLE", 16, True, AHEAD)],
    ids=["standalone-graphs-overlap", "standalone-eager", "eagle-graphs-overlap"],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_drafts_of_a_model_branch(model, tmp_path, backend, algorithm, page, graphs, ahead):
    """A step's rows are as many as the branches; after the entries of a row each branch has slots, or pages, of its
    own."""
    if reason := on_cuda.lacks(torch.cuda.get_device_capability(), backend, "auto", latents=False):
        pytest.skip(reason)
    draft = model if algorithm == "STANDALONE" else eagle_of(model, tmp_path / "draft")
    rpc = RPCConfig(interval=RULE.interval, window=RULE.window, ratio=RULE.ratio, scope="all")
    more = branching(3, 2, speculative_algorithm=algorithm, page_size=page, attention_backend=backend, **ahead)
    args = drafting(draft, 8, **more)
    if not graphs:
        args["cuda_graph_backend_decode"] = "disabled"
    with engine(model, rpc, device="cuda", dtype="bfloat16", **args) as running:
        prompts, results = with_and_without(running, TOKENS)
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    for receipt in receipts_of_what_follows(Oracle(model), prompts, results):
        assert receipt["tokens_per_step_compressed"] > 0.6 * receipt["tokens_per_step"] > 1


#: With states copied for the tree as a request decodes, which SGLang does under overlap.
TRACKED = test_recurrent.BESIDE
RETRACTED = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "11"}


@pytest.mark.parametrize(
    ("family", "algorithm", "tokens", "more", "environment"),
    [
        ("qwen3_next", "STANDALONE", 4, TRACKED, {}),
        ("qwen3_next", "STANDALONE", 4, {**TRACKED, "page_size": 16}, RETRACTED),
        ("qwen3_next", "STANDALONE", 4, {}, RETRACTED),
        ("qwen3_next", "NEXTN", 4, TRACKED, {}),
        ("qwen3_5_text", "NEXTN", 4, TRACKED, {}),
        ("qwen3_next", "NGRAM", 6, TRACKED, {}),
        ("qwen3_next", "NGRAM", 6, {}, {}),
    ],
    ids=[
        *("standalone", "standalone-retracted-16", "standalone-retracted-no-overlap", "mtp", "mtp-three-axes"),
        *("earlier-text", "earlier-text-no-overlap"),
    ],
)
def test_drafts_of_models_with_recurrent_layers(tmp_path, monkeypatch, family, algorithm, tokens, more, environment):
    """A verify keeps the state after each row, and the graph's, that of the last accepted one: in float32 a judge tells
    every state, and every tracked one that the tree has, from any other. Qwen3.5's rope has three axes (M-RoPE)."""
    for name, value in {**environment, "SGLANG_MAMBA_CONV_DTYPE": "float32"}.items():
        monkeypatch.setenv(name, value)
    path = recurrent_drafts.write_model(tmp_path / "model", family, layers=2)
    judge = recurrent.Judge(path)
    if algorithm == "NEXTN":
        path = recurrent_drafts.with_mtp(path, tmp_path / "mtp")
        more = {**more, "speculative_algorithm": algorithm, "speculative_draft_model_path": None}
    draft = None if algorithm == "NGRAM" else recurrent_drafts.dense_draft(path, tmp_path / "draft")
    rpc = RPCConfig(interval=40, window=8, ratio=2, scope="all", host_backup_gb=0.5)
    prompts, options, lengths = zip(*test_recurrent.requests(random.Random(5)), strict=True)
    with engine(path, rpc, **drafting(draft, tokens, **more)) as running:
        results = [test_recurrent.generate(running, list(prompts), options, lengths) for _ in range(2)][-1]
        texts = [[*prompt, *result["output_ids"], 77] for prompt, result in zip(prompts, results, strict=True)]
        again = [test_recurrent.generate(running, [text], [{"enabled": False}], [12])[0] for text in texts]
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    judged = sum(test_recurrent.check(judge, *each) for each in zip(prompts, options, results, strict=True))
    assert judged > len(prompts) // 2
    for text, result in zip(texts, again, strict=True):
        assert test_recurrent.check(judge, text, {}, result)
    receipts = [result["meta_info"]["rpc"] for result in results if result["meta_info"]["rpc"]["compressions"]]
    assert sum(receipt["cuts"] for receipt in receipts) > 5
    assert sum(receipt["restored"] for receipt in receipts) >= bool(environment)
    assert all(receipt["tokens_per_step_compressed"] > 1.15 for receipt in receipts)
