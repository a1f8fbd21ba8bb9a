"""The recordings on a CUDA device: CUDA graphs and overlap on, compaction fenced between forwards.

float32 kernels of other backends sum in another order, so the oracle judges the tokens instead of equality.
"""

from __future__ import annotations

import pytest

from tests.engine.engines import GOLDENS, Golden, assert_balanced, engine, greedy, look_inside
from tests.engine.oracle import Oracle
from tests.engine.test_oracle import rule_of

pytestmark = pytest.mark.gpu
LOGIT_TOLERANCE = 5e-3


@pytest.mark.parametrize("page", [1, 16])
@pytest.mark.parametrize("name", GOLDENS)
def test_the_recordings_under_cuda_graphs(goldens, tmp_path, name, page):
    golden = Golden.load(goldens / name)
    oracle = Oracle(golden.path)
    arguments = {"device": "cuda", "attention_backend": "triton", "page_size": page, "mem_fraction_static": 0.3}
    with engine(golden.path, golden.config, **arguments) as running:
        assert running.get_server_info()["internal_states"][0]["rpc"]["scoring"] == "triton"
        n = len(golden.output)
        results = running.generate(
            input_ids=[golden.prompt] * 8, sampling_params=[*[greedy(n)] * 7, greedy(n, rpc={"enabled": False})]
        )
        for result in results[:7]:
            assert result["meta_info"]["rpc"]["compressions"] == golden.compressions
            assert max(oracle.gaps(golden.prompt, result["output_ids"], rule_of(golden))[0]) < LOGIT_TOLERANCE
        assert max(oracle.gaps(golden.prompt, results[7]["output_ids"], None)[0]) < LOGIT_TOLERANCE
        assert_balanced(look_inside(running, tmp_path, [1]))
