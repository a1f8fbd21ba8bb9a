"""`--rpc-reuse share` where an entry is a latent (MLA), and where layers have sliding windows."""

from __future__ import annotations

import random

import pytest

from sglang_rpc import RPCConfig
from tests.engine import latent, windows
from tests.engine.engines import assert_balanced, engine, flush, greedy, look_inside
from tests.engine.oracle import Rule
from tests.engine.test_random import LOGIT_TOLERANCE

P, R, C = 40, 8, 2
RULE = Rule(P, R, C)
MODELS = {
    "latent": lambda folder: latent.write_model(folder),
    "gemma2": lambda folder: windows.write_model(folder, windows.FAMILIES["gemma2"]),
    "olmo3": lambda folder: windows.write_model(folder, windows.FAMILIES["olmo3"]),
}
SHAPES = {
    "latent": dict(page_size=16, chunked_prefill_size=32, enable_mixed_chunk=True),
    "gemma2": {},
    "olmo3": dict(page_size=16, disable_overlap_schedule=True),
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.long] * (name == "olmo3")) for name in MODELS]
)
def served(request, tmp_path_factory):
    model = MODELS[request.param](tmp_path_factory.mktemp(request.param))
    rpc = RPCConfig(interval=P, window=R, ratio=C, scope="all", reuse="share")
    with engine(model, rpc, **SHAPES[request.param]) as running:
        yield running, model, SHAPES[request.param].get("page_size", 1)


def prompt_of(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(20, 500) for _ in range(37)]


def test_from_every_point_of_the_tail_on_it_is_the_one_long_request(served, tmp_path):
    running, _, page = served
    prompt, due = prompt_of(3), 3 * P + R
    whole = running.generate(input_ids=prompt, sampling_params=greedy(due + 1, rpc={}))["output_ids"]
    flush(running)
    first = running.generate(input_ids=prompt, sampling_params=greedy(due - 1, rpc={}))
    assert first["output_ids"] == whole[: due - 1]
    assert first["meta_info"]["rpc"]["compressions"] == 2
    taken = 0
    for point in range(2 * P + R, due, 3):
        text = [*prompt, *whole[:point]]
        again = running.generate(input_ids=text, sampling_params=greedy(due + 1 - point, rpc={}))
        if again["meta_info"]["rpc"]["reused"]:
            assert again["meta_info"]["rpc"]["reused"] == 2 * P + R
            assert again["output_ids"] == whole[point:], point
            taken += 1
    assert taken > (P - page) // 3 - 2
    assert len(set(whole)) > 20
    assert_balanced(look_inside(running, tmp_path, [1]))


@pytest.mark.parametrize("served", ["latent"], indirect=True)
def test_turns_are_what_the_oracle_keeps_of_latents(served):
    running, model, _ = served
    text, turns = [], []
    for given, tokens in ((prompt_of(5), 100), (prompt_of(6), 110), ([8, 19, 3], 60)):
        text = [*text, *given]
        result = running.generate(input_ids=text, sampling_params=greedy(tokens, rpc={}))
        assert (result["meta_info"]["rpc"]["reused"] > 0) == (len(turns) > 0)
        turns.append((given, result["output_ids"]))
        text = [*text, *result["output_ids"]]
    assert max(map(max, latent.LatentOracle(model).turns(turns, RULE))) < LOGIT_TOLERANCE
