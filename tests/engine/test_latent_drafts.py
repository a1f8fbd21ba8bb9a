"""Speculative decoding of models with latent attention (MLA): every token is that of a run without drafts."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sglang_rpc import RPCConfig
from tests.engine.engines import assert_balanced, engine, greedy, look_inside
from tests.engine.latent import write_model
from tests.engine.latent_drafts import with_mtp
from tests.engine.speculative import AHEAD, branching, speculating
from tests.engine.test_speculative import assert_same

RPC = RPCConfig(interval=32, window=8, ratio=4, scope="all")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("latent") / "model")


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("other-latent") / "model", seed=1)


def requests() -> tuple[list[list[int]], list[dict[str, Any]]]:
    rng = random.Random(7)
    prompts = [[rng.randrange(20, 500) for _ in range(length)] for length in (30, 9, 41, 17, 25)]
    options = [
        {},
        {"interval": 9, "window": 4, "ratio": 3},
        {"interval": 20, "window": 2, "ratio": 2.5},
        {"enabled": False},
        {"interval": 37, "ratio": 8},
    ]
    lengths = [150, 120, 180, 100, 160]
    return prompts, [greedy(n, rpc) for n, rpc in zip(lengths, options, strict=True)]


def run(running) -> list[dict[str, Any]]:
    prompts, params = requests()
    return running.generate(input_ids=prompts, sampling_params=params, return_logprob=True, logprob_start_len=-1)


@pytest.fixture(scope="module")
def expected(model) -> list[dict[str, Any]]:
    """Without drafts."""
    with engine(model, RPC, disable_overlap_schedule=True) as running:
        return run(running)


SHAPES = {
    "itself, 4, overlap, page 16": (True, 4, {**AHEAD, "page_size": 16}),
    "itself, 3": (True, 3, {}),
    "another, 2, page 16": (False, 2, {"page_size": 16}),
    "itself, 3 steps of 2": (True, 6, branching(3, 2)),
    "another, 3 steps of 2, overlap, page 16": (False, 8, branching(3, 2, page_size=16, **AHEAD)),
    "earlier text, 4": (None, 4, {}),
    "itself, 4, tp 2": (True, 4, {"tp_size": 2}),
}
BY_DEFAULT = ("itself, 4, overlap, page 16",)


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=[] if shape in BY_DEFAULT else pytest.mark.long) for shape in SHAPES]
)
def test_every_token_is_as_without_drafts(model, another, expected, tmp_path, shape):
    own, n, more = SHAPES[shape]
    draft = None if own is None else model if own else another
    with speculating(model, RPC, draft, n, **more) as running:
        results = run(running)
        seen = look_inside(running, tmp_path, [1])
    assert_same(results, expected)
    assert_balanced(seen)
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert [receipt["compressions"] > 2 for receipt in receipts] == [True, True, True, False, True]
    if own:
        assert min(receipt["tokens_per_step"] for receipt in receipts) > 1.5, receipts
        assert sum(receipt["cuts"] for receipt in receipts) > 0


@pytest.fixture(scope="module")
def with_layer(model, tmp_path_factory):
    return with_mtp(model, tmp_path_factory.mktemp("latent-mtp") / "model")


@pytest.fixture(scope="module")
def expected_with_layer(with_layer) -> list[dict[str, Any]]:
    with engine(with_layer, RPC, disable_overlap_schedule=True) as running:
        return run(running)


@pytest.mark.parametrize(
    ("n", "more"),
    [
        pytest.param(4, {**AHEAD, "page_size": 16}, id="chain, overlap"),
        pytest.param(6, branching(3, 2), id="tree", marks=pytest.mark.long),
    ],
)
def test_a_layer_that_the_model_brings_along(with_layer, expected_with_layer, tmp_path, n, more):
    """Multi-token prediction, as DeepSeek V3 has it."""
    with speculating(with_layer, RPC, with_layer, n, speculative_algorithm="NEXTN", **more) as running:
        results = run(running)
        seen = look_inside(running, tmp_path, [1])
    assert_same(results, expected_with_layer)
    assert_balanced(seen)
    for result in results:
        receipt = result["meta_info"]["rpc"]
        assert receipt["tokens_per_step"] > 2, receipt
        if receipt["compressions"]:
            assert receipt["tokens_per_step_compressed"] > 2, receipt
