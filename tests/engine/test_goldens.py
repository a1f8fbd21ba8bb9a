"""The authors' whole runs, token for token, through SGLang with its features on."""

from __future__ import annotations

import pytest

from tests.engine.engines import GOLDENS, Golden, engine, greedy

SHAPES = {
    "overlap": {},
    "no-overlap, page 16": {"disable_overlap_schedule": True, "page_size": 16},
    "overlap, page 16, chunked, mixed": {"page_size": 16, "chunked_prefill_size": 16, "enable_mixed_chunk": True},
    "no-overlap, chunked, mixed": {
        "disable_overlap_schedule": True,
        "chunked_prefill_size": 8,
        "enable_mixed_chunk": True,
    },
    "tp 2": {"tp_size": 2},
}


#: Run by default: every recording, every shape, aggregation `group` wherever it differs. The rest is `-m long`.
DEFAULT = {
    ("gqa_all_p64", "overlap"),
    ("gqa_all_p64", "tp 2"),
    ("mha_all_p128", "overlap, page 16, chunked, mixed"),
    ("gqa_group_p64", "overlap, page 16, chunked, mixed"),
    ("gqa_max_p48", "no-overlap, page 16"),
    ("gqa8x_p64", "no-overlap, chunked, mixed"),
}


def _served() -> list:
    pairs = [(golden, shape) for golden in GOLDENS for shape in SHAPES]
    return [pytest.param(p, id="-".join(p), marks=() if p in DEFAULT else pytest.mark.long) for p in pairs]


@pytest.fixture(scope="module", params=_served())
def served(request, goldens):
    name, shape = request.param
    golden = Golden.load(goldens / name)
    with engine(golden.path, golden.config, **SHAPES[shape]) as running:
        yield golden, running


def test_alone_then_after_a_radix_hit(served):
    golden, running = served
    first = running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)))
    again = running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)))
    assert first["output_ids"] == golden.output
    assert again["output_ids"] == golden.output
    assert first["meta_info"]["cached_tokens"] == 0
    assert again["meta_info"]["cached_tokens"] > 0
    for result in (first, again):
        receipt = result["meta_info"]["rpc"]
        assert receipt["compressions"] == golden.compressions
        assert receipt["late"] == 0


def test_streaming(served):
    golden, running = served
    chunks = list(running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)), stream=True))
    assert chunks[-1]["output_ids"] == golden.output
    assert chunks[-1]["meta_info"]["rpc"]["compressions"] == golden.compressions
    assert all("rpc" not in chunk["meta_info"] for chunk in chunks[:-1])


def test_in_a_batch_of_six_with_other_lengths_and_settings(served):
    golden, running = served
    n, prompt = len(golden.output), golden.prompt
    results = running.generate(
        input_ids=[prompt, prompt, prompt[:-3], [7] * 70 + prompt, prompt, prompt[:5]],
        sampling_params=[
            greedy(n),
            greedy(n, rpc={"enabled": False}),
            greedy(n - 77, rpc={"interval": 20, "window": 4, "ratio": 2}),
            greedy(150, rpc={"interval": 33, "ratio": 8}),
            greedy(n),
            greedy(3),
        ],
    )
    outputs = [result["output_ids"] for result in results]
    assert outputs[0] == golden.output
    assert outputs[1] == golden.full[:n]
    assert outputs[4] == golden.output
    assert [len(output) for output in outputs] == [n, n, n - 77, 150, n, 3]
    receipts = [result["meta_info"].get("rpc") for result in results]
    assert receipts[1]["compressions"] == 0
    assert receipts[1]["reason"] == "switched off by the request"
    assert receipts[2]["compressions"] == (n - 77 - 1 - 4) // 20
    assert receipts[5] is None  # neither asked nor compressed
