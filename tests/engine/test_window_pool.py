"""Models whose window layers have a KV pool of their own: after a compression, each layer sees what it should."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine.engines import engine, flush, greedy, look_inside
from tests.engine.window_pool import (
    FAMILIES,
    assert_both_pools_balanced,
    generate,
    let_torch_native_serve_gemma4,
    write_both,
)
from tests.engine.windows import Judge, check

torch.set_num_threads(1)  # more threads on these tiny tensors only fight the server for the cores

#: Arguments, and how late SGLang frees what has left a window.
SHAPES = {
    "overlap": ({}, 128),
    "overlap, freed at once": ({}, 1),
    "page 16, mixed": (dict(page_size=16, chunked_prefill_size=32, enable_mixed_chunk=True), 128),
    "page 16, mixed, freed at once": (dict(page_size=16, chunked_prefill_size=16, enable_mixed_chunk=True), 1),
    "no overlap, mixed": (dict(disable_overlap_schedule=True, chunked_prefill_size=16, enable_mixed_chunk=True), 7),
    "windows shorter than a page": (dict(page_size=32), 1),
}
BY_DEFAULT = {"mellum": "page 16, mixed, freed at once", "gemma4": "overlap"}
RUNS = [
    pytest.param(
        (family, shape), id=f"{family}, {shape}", marks=() if shape == BY_DEFAULT[family] else pytest.mark.long
    )
    for family in FAMILIES
    for shape in SHAPES
]


@pytest.fixture(scope="module", params=RUNS)
def running(request, tmp_path_factory):
    name, shape = request.param
    family, (args, interval) = FAMILIES[name], SHAPES[shape]
    served, judged = write_both(tmp_path_factory.mktemp(name), name)
    rpc = RPCConfig(interval=64, window=8, ratio=2, scope="all", window_pool="swa")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_SWA_EVICTION_INTERVAL", str(interval))
        backend = let_torch_native_serve_gemma4(patch) if name == "gemma4" else {}
        with engine(served, rpc, **args, **backend) as started:
            yield started, Judge(judged, family.reach), family.reach, args.get("page_size", 1)


def test_each_token_has_the_probability_that_the_judge_gives_it(running, tmp_path):
    running, judge, reach, page = running
    prompts, options, results = generate(running, reach, page)
    judged = compressed = 0
    for prompt, rpc, result in zip(prompts, options, results, strict=True):
        judged += check(judge, prompt, rpc, result, page)
        compressed += judge.events
    assert judged > len(prompts) // 2
    assert compressed > judged
    assert len(set(results[0]["output_ids"])) > 12
    assert_both_pools_balanced(look_inside(running, tmp_path, prompts[0]))
    flush(running)


def test_a_request_whose_compressions_would_split_pages_is_refused(running):
    running, _, reach, page = running
    interval = 2 * 2 * (reach + page)
    split = {"interval": interval - 1, "window": 8, "ratio": 2}
    if page == 1:
        return
    evicted, better = interval - 1 - int((interval - 1) / 2), -(-interval // (2 * page)) * 2 * page
    with pytest.raises(ValueError, match=f"pages of {page} slots, .* evicts {evicted} entries"):
        running.generate(input_ids=[5, 6, 7], sampling_params=greedy(4, rpc=split))
    running.generate(input_ids=[5, 6, 7], sampling_params=greedy(4, rpc={**split, "interval": better}))
