"""Speculative decoding on a CUDA device: graphs, and attention backends that take positions of draft steps for row
lengths. There, logical positions would leave outputs as they are, and spoil every draft of a compressed row."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine import dense, latent, on_cuda
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
    """A step's rows are as many as the branches; behind the entries of a row each branch has slots, or pages, of its
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
