"""Multimodal rope (mrope): positions count the text on all three axes, with an image in the prompt and without."""

from __future__ import annotations

import random

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine.engines import assert_balanced, engine, flush, greedy, look_inside
from tests.engine.oracle import Rule
from tests.engine.test_random import LOGIT_TOLERANCE, SELECTION_TOLERANCE
from tests.engine.visual import IMAGE, VISION_END, VISION_START, MaskedLoop, picture, write_model

torch.set_num_threads(1)
SERVER = RPCConfig(interval=32, window=8, ratio=4, scope="all")
SHAPES = {
    "stock": {},
    "overlap": {},
    "page 16, mixed, retracting": dict(page_size=16, chunked_prefill_size=32, enable_mixed_chunk=True),
    "tp 2": dict(tp_size=2),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("visual"))


@pytest.fixture(scope="module")
def loop(model):
    return MaskedLoop(model)


@pytest.fixture(scope="module", params=SHAPES)
def running(request, model):
    with pytest.MonkeyPatch.context() as patch:
        if "retracting" in request.param:
            patch.setenv("SGLANG_TEST_RETRACT", "1")
            patch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
        with engine(model, None if request.param == "stock" else SERVER, **SHAPES[request.param]) as started:
            yield started, request.param


def requests():
    """Prompts, with their images, and options: every second prompt has an image, each of another shape and place."""
    rng = random.Random(5)
    shared = [rng.randrange(20, 250) for _ in range(40)]
    for index in range(12):
        text = [rng.randrange(20, 250) for _ in range(index + 1)]
        image = picture(2 + index % 3, 3 + index % 2, seed=index) if index % 2 else None
        media = [VISION_START, IMAGE, VISION_END] if image else []
        rpc = {"interval": rng.randint(8, 40), "window": rng.randint(2, 8), "ratio": rng.choice([1.5, 2, 4])}
        options = {"enabled": False} if index in (2, 3) else rpc
        yield shared[: rng.choice([9, 33])] + media + text, image, options, rng.randint(60, 140)


def test_each_token_follows_from_what_the_loop_keeps(running, loop, tmp_path):
    running, shape = running
    prompts, images, options, lengths = zip(*requests(), strict=True)
    stock = shape == "stock"
    results = running.generate(
        input_ids=list(prompts),
        image_data=[[image] if image else [] for image in images],
        sampling_params=[greedy(n, rpc=None if stock else rpc) for n, rpc in zip(lengths, options, strict=True)],
    )
    judged = retracted = 0
    for prompt, image, rpc, result in zip(prompts, images, options, results, strict=True):
        meta, output = result["meta_info"], result["output_ids"]
        assert meta["prompt_tokens"] == len(loop.expanded(prompt, image))
        rule = Rule(rpc["interval"], rpc["window"], rpc["ratio"]) if "interval" in rpc and not stock else None
        if not stock:
            assert (meta["rpc"]["compressions"] > 0) == (rule is not None), meta["rpc"]
            assert meta["rpc"]["late"] == 0, meta["rpc"]
            retracted += meta["rpc"]["retractions"]
        gaps, closest = loop.gaps(prompt, output, rule, image)
        if closest > SELECTION_TOLERANCE:
            assert max(gaps) < LOGIT_TOLERANCE, (gaps.index(max(gaps)), max(gaps), closest, meta)
            judged += 1
        if rule is not None:
            uncompressed, _ = loop.gaps(prompt, output, None, image)
            assert max(uncompressed) > LOGIT_TOLERANCE  # the loop tells the two apart
    assert judged > len(prompts) // 2
    assert (retracted > 3) == ("retracting" in shape)
    assert len(set(results[1]["output_ids"])) > 20
    assert_balanced(look_inside(running, tmp_path, prompts[0]))
    flush(running)
