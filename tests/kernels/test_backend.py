"""The whole Triton path in a played decode loop, whose oracle checks every entry that each compression keeps."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc.backends import choose as paths
from sglang_rpc.backends import triton_backend as triton_path
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.scoring import key_table
from tests.kernels.cases import DEVICE, FLOAT8
from tests.loops import decode_loop


def config(interval=16, window=4, ratio=4, **others) -> RPCConfig:
    return RPCConfig(interval=interval, window=window, ratio=ratio, scope="all", **{"scoring": "triton", **others})


def Loop(*args, **kwargs) -> decode_loop.Loop:
    return decode_loop.Loop(*args, device=DEVICE, **kwargs)


def run(loop: decode_loop.Loop, steps: int = 75) -> None:
    assert loop.compressor.scoring == "triton"
    first = loop.add(row=1)
    loop.run(7)
    second = loop.add(row=2, prompt=9, window=2, interval=10)
    third = loop.add(row=3, prompt=1, ratio=2)
    loop.run(steps)
    for request in (first, second, third):
        assert len(request.done) > 2


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("selector", ["official", pytest.param("paper", marks=pytest.mark.long)])
def test_keeps_what_the_oracle_keeps(aggregation, selector):
    run(Loop(config(aggregation=aggregation, selector=selector)))


@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_window_layers_see_what_they_would_have_seen(aggregation):
    loop = Loop(config(interval=28, aggregation=aggregation), reach=11)
    assert loop.compressor.scoring == "triton"
    request = loop.add()
    loop.run(64)
    loop.check_windows(request)
    assert len(request.done) == 2


def test_max_pooling_keeps_as_many():
    # Neighbours that share a maximum tie, and which of them is kept is nobody's promise.
    run(Loop(config(pooling="max"), check=False))


@pytest.mark.parametrize("keys_as", FLOAT8, ids=str)
def test_float8_keys(keys_as):
    run(Loop(config(), keys_as=keys_as), steps=60)


def test_latents_that_are_key_and_value_in_one():
    run(Loop(config(), heads=4, kv_heads=1, latent=True))


def test_logits_with_a_soft_cap():
    run(Loop(config(), logit_cap=3.0), steps=60)


def test_early_compressions():
    loop = Loop(config())
    request = loop.add()
    assert loop.record_ahead(request)
    loop.run(15)
    assert loop.evict_early(request, 4) is not None
    assert request.early == [(15, 2 + 4)]
    loop.run(30)
    assert [generated for generated, _, _ in request.done] == [20, 36]


def test_more_than_the_scratch_memory_holds_is_cut(monkeypatch):
    monkeypatch.setattr(triton_path.TritonBackend, "_bytes", lambda path, candidates, end: 10 * candidates)
    monkeypatch.setattr(triton_path, "SCRATCH_BYTES", 2 * 10 * 16)  # two requests at the first compression
    sizes = []
    original = triton_path.TritonBackend._compress
    monkeypatch.setattr(
        triton_path.TritonBackend, "_compress", lambda path, part: (sizes.append(len(part)), original(path, part))
    )
    loop = Loop(config())
    for row in (1, 2, 3):
        loop.add(row=row)
    loop.run(60)
    first = sizes.index(2)  # before it come trials and the warm-up
    assert sizes[first : first + 2] == [2, 1]
    assert max(sizes) <= 2


def test_scores_are_added_over_ranks():
    # One rank with half of the heads, given the other half's scores, keeps what one with all of them does.
    scores: list[torch.Tensor] = []
    halves = [
        Loop(config(), heads=8, kv_heads=4, heads_of=half, check=False, reduce=lambda own: scores.append(own) or own)
        for half in (slice(0, 2), slice(2, 4))
    ]
    for loop in halves:
        loop.add()
        loop.run(20)
    both = scores[0] + scores[1]
    rank = Loop(config(), heads=8, kv_heads=4, heads_of=slice(0, 2), check=False, reduce=lambda own: both)
    whole = Loop(config(), heads=8, kv_heads=4)
    for loop in (rank, whole):
        request = loop.add()
        loop.run(20)
        assert request.done
    kept = [loop.layers[0].values[loop.slots(loop.requests[0]), 0, 0] for loop in (rank, whole)]
    assert torch.equal(*kept)


def test_asked_for_without_a_gpu_it_is_refused(monkeypatch):
    monkeypatch.setattr(key_table, "runs_on", lambda device: False)
    with pytest.raises(ConfigError, match="needs a GPU"):
        Loop(config())
    assert decode_loop.Loop(config(scoring="auto")).compressor.scoring == "reference"  # the CPU's choice


def test_kernels_that_go_wrong_on_this_device_are_not_used(monkeypatch, caplog):
    right = triton_path.select
    monkeypatch.setattr(triton_path, "select", lambda *arguments: right(*arguments).roll(1, -1))
    with pytest.raises(ConfigError, match=r"cannot serve this model: in a trial on .* entries of keys wrong"):
        Loop(config())
    monkeypatch.setattr(paths, "_best", lambda device: "triton")
    assert Loop(config(scoring="auto")).compressor.scoring == "reference"
    assert "entries of keys wrong" in caplog.text


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_layers_that_no_kernel_takes_are_compressed_with_pytorch(monkeypatch, caplog, kind):
    def refuse(layers):
        raise kind("no kernel takes these")

    monkeypatch.setattr(triton_path, "KeyTable", refuse)
    with pytest.raises(ConfigError, match="no kernel takes these; use --rpc-scoring reference"):
        Loop(config())
    monkeypatch.setattr(paths, "_best", lambda device: "triton")
    assert Loop(config(scoring="auto")).compressor.scoring == "reference"
    assert "no kernel takes these" in caplog.text
