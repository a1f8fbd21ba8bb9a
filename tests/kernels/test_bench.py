"""What eval.bench.kernels times does what it says."""

from __future__ import annotations

import torch

from eval.bench.kernels import Scene, Shape, parts
from sglang_rpc.config import RPCConfig
from tests.kernels.cases import DEVICE


def test_each_part_runs_and_the_kernels_do_what_the_reference_does():
    shape = Shape(layers=2, heads=4, kv_heads=2, head_dim=32, dtype="float16")
    config = RPCConfig(interval=40, window=8, ratio=4, scope="all", scoring="triton")
    scenes = [Scene(shape, config, candidates=90, batch=2, device=str(DEVICE)) for _ in range(2)]
    total = {name: (size, work) for name, size, work in parts(scenes[0])}
    reference = {name: work for name, _, work in parts(scenes[1])}
    assert list(total) == ["scores", "select", "move", "total", "reference"]
    assert total["move"][0] == 2 * 2 * 2 * 2 * (60 + 8) * 2 * 32 * 2  # r+w, K+V, layers, requests, entries, heads, dim
    total["total"][1]()
    reference["reference"]()
    for ours, theirs in zip(scenes[0].layers, scenes[1].layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
