"""HiCache under RPC: prompts leave the pool for host memory and come back, requests are retracted, outputs stay.

SGLANG_TEST_RETRACT retracts a request every third step. While it waits, its prompt may leave the pool; then it comes
back from its backup alone, and what the tree has of it in host memory is left there.
"""

from __future__ import annotations

import json
import random

import pytest

from tests.engine import engines, host_tier
from tests.engine.engines import Golden, assert_balanced, engine, look_inside, staggered

#: Slots. Two requests fill it, and the prompts of all are more.
POOL = 640
TOKENS = 150
SHAPES = {
    "write_through": dict(hicache_write_policy="write_through"),
    "write_back": dict(hicache_write_policy="write_back"),
    "page_16": dict(hicache_write_policy="write_through", page_size=16),
}
BY_DEFAULT = ("write_through",)


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


def requests() -> list[tuple[list[int], int]]:
    """Prompts and lengths. Two turns of six: the second turn's prompts begin with the first's."""
    made = random.Random(5)
    first = [[made.randrange(20, 500) for _ in range(140)] for _ in range(6)]
    return [(prompt, TOKENS) for prompt in first] + [([*prompt, 7, 8, 9], TOKENS) for prompt in first]


@pytest.fixture(scope="module")
def asked() -> list[tuple[list[int], int]]:
    return requests()


@pytest.fixture(scope="module")
def alone(golden, asked) -> list[list[int]]:
    """In an ample pool, without host memory, never retracted."""
    with engine(golden.path, golden.config) as running:
        return [result["output_ids"] for result in staggered(running, asked)]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.long) for name in SHAPES],
)
def running(request, golden, alone):  # one engine at a time: the end of one kills every child
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_TEST_RETRACT", "1")
        patch.setattr(engines._spied(), "run_scheduler_process_func", staticmethod(host_tier.run_scheduler_process))
        shape = {**host_tier.ARGUMENTS, **SHAPES[request.param], "max_total_tokens": POOL}
        with engine(golden.path, golden.config, **shape) as started:
            yield started


def test_prompts_come_back_from_host_memory_and_outputs_stay(running, asked, alone, tmp_path):
    half = len(asked) // 2
    results = staggered(running, asked[:half])
    again = staggered(running, asked[half:])
    assert [result["output_ids"] for result in results + again] == alone
    receipts = [result["meta_info"]["rpc"] for result in results + again]
    assert all(receipt["compressions"] == (TOKENS - 1 - 8) // 64 for receipt in receipts)
    assert sum(receipt["retractions"] for receipt in receipts) > 20
    assert sum(receipt["restored"] for receipt in receipts) > 20
    assert sum(result["meta_info"]["cached_tokens"] for result in again) > 0
    running.collective_rpc("host_tier", path=str(tmp_path / "copied.json"))
    copied = json.loads((tmp_path / "copied.json").read_text())
    assert copied["to_host"] > 0, copied
    assert copied["to_device"] > 0, copied
    assert copied["restored_beside_a_host_hit"] > 0, copied
    seen = look_inside(running, tmp_path, asked[0][0])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0
