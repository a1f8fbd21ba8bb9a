"""What eval.bench.kernels times does what it says."""

from __future__ import annotations

import functools

import pytest
import torch

from eval.bench.kernel_parts import RULES, Scene, Shape, parts
from sglang_rpc.config import RPCConfig
from tests.kernels.cases import DEVICE

SHAPE = Shape(layers=2, heads=4, kv_heads=2, head_dim=32, dtype="float16")
CONFIG = RPCConfig(interval=40, window=8, ratio=4, scope="all", scoring="triton")
scene = functools.partial(Scene, SHAPE, CONFIG, candidates=90, batch=2, prompt=13, device=str(DEVICE))
ENTRIES = 2 * 2 * 2 * 32 * 2  #: bytes of a key of both requests, in all layers: requests, layers, heads, dim, float16


@pytest.mark.parametrize("policy", [pytest.param("rpc", marks=pytest.mark.long), "peak"])
def test_each_part_runs_and_the_kernels_do_what_the_reference_does(policy):
    scenes = [scene(policies=(policy,)) for _ in range(2)]
    total = {part.name: part for part in parts(scenes[0])}
    reference = {part.name: part for part in parts(scenes[1])}
    assert list(total) == ["lse", "scores", "select", "move", "total", "reference"]
    total["total"].work()
    reference["reference"].work()
    for ours, theirs in zip(scenes[0].layers, scenes[1].layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
    for name in ("lse", "scores", "select", "move"):
        total[name].work()


def test_bytes_are_what_a_rule_reads():
    found = {(part.policy, part.name): part.bytes // ENTRIES for part in parts(scene(policies=("rpc", "peak")))}
    assert found["rpc", "lse"] == 90
    assert found["rpc", "scores"] == 2 * 90
    assert found["peak", "lse"] == 13 + 90 + 8
    assert found["peak", "scores"] == 13 + 90 + 8 + 2 * 90  # the candidates' keys again, and their values
    assert found["rpc", "move"] == 4 * (60 + 8)  # read and written, keys and values
    assert ("peak", "move") not in found
    selected = 6 * 4 * 2 * 90 * 2 // ENTRIES  # 24 bytes per request, candidate and layer
    assert found["peak", "total"] == found["peak", "scores"] + selected + found["rpc", "move"]


def test_every_policy_that_has_a_rule_can_be_timed():
    assert set(RULES) == {"rpc", "snapkv", "peak"}
