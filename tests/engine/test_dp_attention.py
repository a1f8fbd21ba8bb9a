"""DP attention on two ranks: each attends to requests of its own, and the MLPs of both run every step together.

What one server gives, they give, though ranks are idle, padded, or prefill while the other records.
"""

from __future__ import annotations

import random

import pytest

from eval.bench.server import free_port
from sglang_rpc.config import RPCConfig
from tests.engine.dense import Dims, write_qwen3
from tests.engine.engines import assert_balanced, engine, look_at_ranks, staggered
from tests.engine.servers import run_to_exit

GROUPS = 2
RULE = RPCConfig(interval=64, window=8, ratio=4, scope="all")
DIMS = Dims(hidden=64, heads=4, kv_heads=2, wide=128, layers=2)
#: Of one engine each. The pool of `tight`, a rank's, is too small for the four requests of that rank.
SHAPES = {
    "default": {},
    "retracted": {},
    "tight": dict(page_size=4, chunked_prefill_size=16, max_total_tokens=420),
}
BY_DEFAULT = ("retracted", "tight")
ENVIRONMENT = {"retracted": {"SGLANG_TEST_RETRACT": "1"}}


def ranks() -> dict[str, int]:
    """Arguments of an engine. Its ports are its own: SGLang keeps those of an engine that has ended."""
    return dict(tp_size=GROUPS, attn_dp_size=GROUPS, port=free_port())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_qwen3(tmp_path_factory.mktemp("qwen3"), DIMS)


@pytest.fixture(scope="module")
def asked() -> list[tuple[list[int], int]]:
    """Prompts and lengths. The last requests are long: at the end their rank runs beside an idle one."""
    made = random.Random(3)
    lengths = (300, 280, 260, 240, 220, 200, 340, 180)
    return [([made.randrange(DIMS.vocabulary) for _ in range(20 + 5 * i)], n) for i, n in enumerate(lengths)]


# First: the end of an engine kills every child, those of `running` too.
def test_without_rpc_two_ranks_give_what_one_gives(model, asked):
    outputs = []
    for shape in ({}, ranks()):
        with engine(model, None, **shape) as started:
            outputs.append([result["output_ids"] for result in staggered(started, asked)])
    assert outputs[0] == outputs[1]


@pytest.fixture(scope="module")
def alone(model, asked) -> list[list[int]]:
    """What one rank gives."""
    with engine(model, RULE) as running:
        return [result["output_ids"] for result in staggered(running, asked)]


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.long) for name in SHAPES],
)
def running(request, model, alone):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.get(request.param, {}).items():
            patch.setenv(name, value)
        with engine(model, RULE, **ranks(), **SHAPES[request.param]) as started:
            yield request.param, started


def test_eight_requests_at_once_give_what_one_rank_gives(running, asked, alone, tmp_path):
    shape, started = running
    results = staggered(started, asked)
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert [result["output_ids"] for result in results] == alone, receipts
    for receipt, (_, tokens) in zip(receipts, asked, strict=True):
        assert receipt["compressions"] == (tokens - 1 - 8) // 64
    retractions = sum(receipt["retractions"] for receipt in receipts)
    assert (retractions > 20) == (shape == "retracted")
    each_rank = look_at_ranks(started, tmp_path, GROUPS, schedulers=GROUPS)
    for seen in each_rank:
        assert_balanced(seen)
        assert seen["host_backup_bytes"] == 0
        assert seen["compressions"] > 0  # each had requests of its own
        if shape != "retracted":
            assert (seen["decodes_beside_waiting"] > 20) == (shape == "tight"), seen
    assert sum(seen["compressions"] for seen in each_rank) == sum(receipt["compressions"] for receipt in receipts)


# tests/unit/test_dp_attention.py has the sentence; this, that a server started so ends with it.
@pytest.mark.long
def test_a_model_that_sglang_serves_wrongly_so_is_refused(goldens):
    shape = "--skip-tokenizer-init --max-total-tokens 4096 --tp-size 2 --attn-dp-size 2"
    code, output = run_to_exit("--model-path", str(goldens / "gqa_all_p64"), "--port", str(free_port()), *shape.split())
    assert code != 0
    (said,) = {line for line in output.splitlines() if line.startswith("sglang-rpc: ")}
    assert said.startswith("sglang-rpc: --attn-dp-size 2 with Qwen2ForCausalLM, which has no DP attention in SGLang,")
