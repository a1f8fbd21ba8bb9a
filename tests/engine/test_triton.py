"""The Triton kernels in a real engine, on SGLang's own pool and rows, in Triton's interpreter: the authors' whole runs,
token for token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sglang_rpc.startup import cpu
from tests.engine.engines import GOLDENS, Golden, assert_balanced, engine, greedy, look_inside

pytestmark = pytest.mark.skipif(
    cpu.accelerator_available(), reason="SGLang's own kernels would be interpreted too; test_gpu.py runs ours compiled"
)
DEFAULT = ("gqa_group_p64",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.long) for name in GOLDENS]
)
def test_the_recordings_through_the_kernels(goldens, tmp_path, monkeypatch, name):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the scheduler, a process of its own, imports Triton afterwards
    golden = Golden.load(goldens / name)
    n, prompt = len(golden.output), golden.prompt
    with engine(golden.path, replace(golden.config, scoring="triton"), page_size=16) as running:
        assert running.get_server_info()["internal_states"][0]["rpc"]["scoring"] == "triton"
        results = running.generate(
            input_ids=[prompt, prompt[:-3], prompt],
            sampling_params=[greedy(n), greedy(n - 77, rpc={"interval": 20, "window": 4, "ratio": 2}), greedy(n)],
        )
        assert results[0]["output_ids"] == results[2]["output_ids"] == golden.output
        assert results[0]["meta_info"]["rpc"]["compressions"] == golden.compressions
        assert results[1]["meta_info"]["rpc"]["compressions"] == (n - 77 - 1 - 4) // 20
        assert_balanced(look_inside(running, tmp_path, prompt))
