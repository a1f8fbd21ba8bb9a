"""`--rpc-when pressure`: exact in an ample pool, compressed under memory pressure, exact again afterwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside

POOL = 1600


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module")
def running(golden):
    config = replace(golden.config, when="pressure", high_watermark=0.6, low_watermark=0.4)
    with engine(golden.path, config, max_total_tokens=POOL) as started:
        yield started


def state(running):
    return running.get_server_info()["internal_states"][0]["rpc"]


def test_it_crosses_up_and_down_again(running, golden, tmp_path):
    tokens = len(golden.full)
    assert len(golden.prompt) + tokens < 0.6 * POOL

    alone = running.generate(input_ids=golden.prompt, sampling_params=greedy(tokens, {}))
    assert alone["output_ids"] == golden.full
    assert alone["meta_info"]["rpc"]["compressions"] == 0
    assert alone["meta_info"]["rpc"]["reason"] == "the pool was not under memory pressure when a compression was due"
    assert (state(running)["pressure_crossings"], state(running)["compressions"]) == (0, 0)

    crowd = [[*golden.prompt[:24], 5 + i] for i in range(8)]
    results = running.generate(input_ids=crowd, sampling_params=greedy(tokens))
    assert [len(result["output_ids"]) for result in results] == [tokens] * 8
    assert state(running)["pressure_crossings"] >= 1
    assert state(running)["compressions"] >= 8

    assert_balanced(look_inside(running, tmp_path, [1]))
    again = running.generate(input_ids=golden.prompt, sampling_params=greedy(tokens))
    assert state(running)["memory_pressure"] is False
    assert again["output_ids"] == golden.full
