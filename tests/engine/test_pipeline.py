"""Two pipeline stages: each compresses its own layers, and all decide alike. What one server gives, they give."""

from __future__ import annotations

import pytest

from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_at_ranks, six_requests, staggered

STAGES = 2
CHUNKS = dict(page_size=4, chunked_prefill_size=16)
#: Of one engine each. The pool of `tight` is too small for all requests; chunks run through both micro-batches.
SHAPES = {
    "default": {},
    "retracted": {},
    "tight": dict(**CHUNKS, max_total_tokens=420),
    "retracted_chunks": CHUNKS,
}
BY_DEFAULT = ("retracted", "tight")
ENVIRONMENT = {name: {"SGLANG_TEST_RETRACT": "1"} for name in ("retracted", "retracted_chunks")}


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


# First: the end of an engine kills every child, those of `running` too.
def test_without_rpc_two_stages_give_what_one_gives(golden):
    with engine(golden.path, None, pp_size=STAGES) as started:
        (result,) = started.generate(input_ids=[golden.prompt], sampling_params=greedy(len(golden.full)))
    assert result["output_ids"] == golden.full


@pytest.fixture(scope="module")
def alone(golden) -> list[list[int]]:
    """What one rank gives."""
    with engine(golden.path, golden.config) as running:
        return [result["output_ids"] for result in staggered(running, six_requests(golden))]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.long) for name in SHAPES],
)
def running(request, golden, alone):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.get(request.param, {}).items():
            patch.setenv(name, value)
        with engine(golden.path, golden.config, pp_size=STAGES, **SHAPES[request.param]) as started:
            yield request.param, started


def test_six_requests_at_once_give_what_one_rank_gives(running, golden, alone, tmp_path):
    shape, started = running
    results = staggered(started, six_requests(golden))
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert alone[0] == golden.output
    assert [result["output_ids"] for result in results] == alone, receipts
    for receipt, (_, tokens) in zip(receipts, six_requests(golden), strict=True):
        assert receipt["compressions"] == (tokens - 1 - 8) // 64
    retractions = sum(receipt["retractions"] for receipt in receipts)
    assert (retractions > 20) == (shape in ENVIRONMENT)
    ranks = look_at_ranks(started, tmp_path, STAGES)
    for seen in ranks:
        assert_balanced(seen)
        assert seen["host_backup_bytes"] == 0
        assert seen["compressions"] == sum(receipt["compressions"] for receipt in receipts)
        if shape not in ENVIRONMENT:
            assert (seen["decodes_beside_waiting"] > 20) == (shape == "tight"), seen
    assert sorted(seen["layers"] for seen in ranks) == [1, 2]
    for same in ("query_slots", "backup_limit", "entry_bytes"):
        assert len({seen[same] for seen in ranks}) == 1, same
