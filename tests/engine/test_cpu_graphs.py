"""The authors' whole runs, token for token, with every decode step replayed from a graph captured at the start."""

from __future__ import annotations

import pytest

from tests.engine import cpu_graphs, engines
from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside


@pytest.fixture(autouse=True)
def in_graphs(monkeypatch):
    monkeypatch.setattr(engines._spied(), "run_scheduler_process_func", staticmethod(cpu_graphs.run_scheduler_process))


def test_the_recordings_from_graphs(goldens, tmp_path):
    golden = Golden.load(goldens / "gqa_all_p64")
    n = len(golden.output)
    # Attention reads each row to the context's end, so that is close.
    limits = dict(context_length=len(golden.prompt) + n + 8, cuda_graph_bs_decode=cpu_graphs.SIZES)
    with engine(golden.path, golden.config, **limits) as running:
        alone = running.generate(input_ids=golden.prompt, sampling_params=greedy(n))
        together = running.generate(
            input_ids=[golden.prompt] * 7,
            sampling_params=[*[greedy(n)] * 4, greedy(n, rpc={"enabled": False}), greedy(n - 77), greedy(90)],
        )
        seen = look_inside(running, tmp_path, [1])
    for result in (alone, *together[:4]):
        assert result["output_ids"] == golden.output
        assert result["meta_info"]["rpc"]["compressions"] == golden.compressions
        assert result["meta_info"]["rpc"]["late"] == 0
    assert together[4]["output_ids"] == golden.full[:n]
    assert together[5]["output_ids"] == golden.output[: n - 77]
    assert together[6]["output_ids"] == golden.output[:90]
    assert seen["decodes"]["eager"] == 0
    assert seen["decodes"]["graph"] > 2 * n - 10
    assert_balanced(seen)
