"""HiCache under RPC on a CUDA device: real copies between host and GPU, delayed, beside compaction and restored rows.

What a copy that is not fenced would spoil shows as a token far below the oracle's best. float32 kernels sum in another
order than the oracle's, so tokens are judged, not compared.
"""

from __future__ import annotations

import json

import pytest

from tests.engine import engines, host_tier
from tests.engine.engines import Golden, assert_balanced, engine, look_inside, staggered
from tests.engine.oracle import Oracle
from tests.engine.test_gpu import LOGIT_TOLERANCE
from tests.engine.test_host_tier import POOL, requests
from tests.engine.test_oracle import rule_of

pytestmark = pytest.mark.gpu
#: GPU cycles that each layer's load waits: about a millisecond, longer than a step of this model.
DELAY = "2000000"


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.mark.parametrize("retracted", [False, True], ids=["calm", "retracted"])
@pytest.mark.parametrize(("policy", "page"), [("write_through", 1), ("write_back", 1), ("write_through", 16)])
def test_prompts_come_back_from_host_memory(golden, policy, page, retracted, tmp_path, monkeypatch):
    monkeypatch.setenv("SGLANG_TEST_HICACHE_H2D_DELAY_CYCLES", DELAY)
    if retracted:
        monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    monkeypatch.setattr(engines._spied(), "run_scheduler_process_func", staticmethod(host_tier.run_scheduler_process))
    tier = dict(enable_hierarchical_cache=True, hicache_ratio=4.0, hicache_write_policy=policy)
    asked, oracle = requests(), Oracle(golden.path)
    half = len(asked) // 2
    with engine(golden.path, golden.config, device="cuda", page_size=page, max_total_tokens=POOL, **tier) as running:
        results = staggered(running, asked[:half]) + staggered(running, asked[half:])
        running.collective_rpc("host_tier", path=str(tmp_path / "counted.json"))
        seen = look_inside(running, tmp_path, asked[0][0])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0
    counted = json.loads((tmp_path / "counted.json").read_text())
    assert counted["to_host"] > 0, counted
    assert counted["to_device"] > 0, counted
    assert (counted["restored_beside_a_host_hit"] > 0) == retracted, counted
    for (prompt, tokens), result in zip(asked, results, strict=True):
        assert result["meta_info"]["rpc"]["compressions"] == (tokens - 1 - 8) // 64
        assert max(oracle.gaps(prompt, result["output_ids"], rule_of(golden))[0]) < LOGIT_TOLERANCE
