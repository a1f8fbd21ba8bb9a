"""Compaction in place, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sglang_rpc.backends import self_check, triton_backend
from sglang_rpc.backends.reference_backend import ReferenceBackend
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory import compaction
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.memory.triton_compaction import SliceTable, move_kept
from sglang_rpc.types import KVLayer
from tests.kernels.cases import DEVICE, Case, case


def some_of(n: int, keep: int, sets: int, made: torch.Generator) -> torch.Tensor:
    """int32 [sets, keep], ascending."""
    return torch.stack([torch.randperm(n, generator=made)[:keep].sort().values for _ in range(sets)]).int()


def check(made: Case, group: bool = False, kept: torch.Tensor | None = None) -> None:
    random = torch.Generator().manual_seed(1)
    sets = made.layers[0].keys.shape[1] if group else 1
    batch = made.batch
    if kept is None:
        kept = torch.full((len(made.layers), batch.size, sets, batch.most_kept), -7, dtype=torch.int32)
        for layer in range(len(made.layers)):
            for index, c in enumerate(made.compressions):
                kept[layer, index, :, : c.keep] = some_of(c.candidates, c.keep, sets, random)
    kept = kept.to(DEVICE)
    expected = [(layer.keys.clone(), layer.values.clone()) for layer in made.layers]
    for layer, buffers in enumerate(expected):
        for index, c in enumerate(made.compressions):
            compaction.move_kept(buffers, made.slots(c), kept[layer, index, :, : c.keep].long(), c.candidates)
    move_kept(SliceTable(made.layers), made.req_to_token, batch, kept)
    for layer, (keys, values) in zip(made.layers, expected, strict=True):
        # The whole pool, bit for bit: nothing but the targets may have changed.
        assert torch.equal(layer.keys.view(torch.uint8), keys.view(torch.uint8))
        assert torch.equal(layer.values.view(torch.uint8), values.view(torch.uint8))


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("page", [1, 16, 64])
def test_equal_to_the_reference(group, page):
    check(case([(90, 16), (40, 40), (1, 1), (333, 150)], page=page), group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_storage_dtypes(dtype):
    check(case([(90, 31)], dtype=dtype, layers=1))


@pytest.mark.parametrize("head_dim", [1, 3, 40, 64, 288])
def test_head_dims(head_dim):
    # One or three bytes of FP8: no whole word.
    check(case([(70, 33)], head_dim=head_dim, dtype=torch.float8_e5m2, layers=1))


def test_values_of_another_width():
    check(case([(70, 33), (20, 3)], head_dim=64, value_dim=24))


@pytest.mark.parametrize("keep", [1, 31, 32, 33, 63, 64, 65, 96])
def test_blocks(keep):
    check(case([(96, keep)], layers=1, window=5))


def test_neighbouring_sources_and_targets_overlap():
    # All move by one: each block's sources are almost its own targets.
    kept = torch.arange(1, 200, dtype=torch.int32).view(1, 1, 1, -1)
    check(case([(200, 199)], layers=1), kept=kept)


def test_nothing_moves_if_all_is_kept():
    made = case([(100, 100)], layers=1)
    before = made.layers[0].keys.clone()
    check(made, kept=torch.arange(100, dtype=torch.int32).view(1, 1, 1, -1))
    assert torch.equal(made.layers[0].keys, before)


def test_values_inside_the_keys_move_once():
    made = case([(90, 30), (50, 9)], kv_heads=1, head_dim=48)
    made.layers = [
        KVLayer(layer.keys, layer.keys[..., :32], layer.dtype, layer.scaling) for layer in made.layers
    ]  # MLA: the values are the first part of the latent
    (group,) = SliceTable(made.layers).groups
    assert group.layers.tolist() == [0, 1]
    expected = [layer.keys.clone() for layer in made.layers]
    random = torch.Generator().manual_seed(1)
    kept = torch.zeros(2, 2, 1, 30, dtype=torch.int32)
    for layer in range(2):
        for index, c in enumerate(made.compressions):
            kept[layer, index, :, : c.keep] = some_of(c.candidates, c.keep, 1, random)
            own = kept[layer, index, :, : c.keep].long().to(DEVICE)
            compaction.move_kept((expected[layer],), made.slots(c), own, c.candidates)
    move_kept(SliceTable(made.layers), made.req_to_token, made.batch, kept.to(DEVICE))
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(made.layers, expected, strict=True))


def test_keys_and_values_in_one_block_of_memory():
    made = case([(60, 20)], layers=1)
    both = torch.stack([made.layers[0].keys, made.layers[0].values])
    made.layers = [KVLayer(both[0], both[1], made.layers[0].dtype, 1.0)]
    check(made)


@pytest.mark.parametrize("group", [False, True])
def test_window_layers_keep_the_newest_and_look_nothing_up(group):
    made = case([(90, 16), (40, 39), (1, 1), (333, 150)], layers=3, page=16)
    made.layers[0], made.layers[2] = (replace(made.layers[index], window=7) for index in (0, 2))
    expected = [[buffer.clone() for buffer in layer.buffers] for layer in made.layers]
    kept = torch.full((1, 4, 2 if group else 1, 150), -7, dtype=torch.int32)
    for index, c in enumerate(made.compressions):
        kept[0, index, :, : c.keep] = some_of(c.candidates, c.keep, kept.shape[2], torch.Generator().manual_seed(index))
        own = made.slots(c)
        for layer, buffers in enumerate(expected):
            if layer == 1:
                compaction.move_kept(tuple(buffers), own, kept[0, index, :, : c.keep].long().to(DEVICE), c.candidates)
            else:
                compaction.move_newest(tuple(buffers), own, c.keep + c.window)
                newest = made.layers[layer].keys[own[own.numel() - c.keep - c.window :]]
                assert torch.equal(buffers[0][own[: c.keep + c.window]], newest)
    move_kept(SliceTable(made.layers), made.req_to_token, made.batch, kept.to(DEVICE))
    for layer, buffers in zip(made.layers, expected, strict=True):
        for actual, wanted in zip(layer.buffers, buffers, strict=True):
            assert torch.equal(actual, wanted)


def test_different_heads_are_refused():
    made, other = case([(20, 4)], layers=1), case([(20, 4)], layers=1, kv_heads=1)
    with pytest.raises(ValueError, match="same KV heads"):
        SliceTable([*made.layers, *other.layers])


def test_dropping_whole_thoughts_agrees_with_pytorch_and_a_mismatch_is_seen(monkeypatch):
    made = case([(30, 3), (60, 4)], page=16, seed=3)
    config = RPCConfig(policy="lightthinker", gist_tokens=(7,))
    ring = QueryRing(layers=2, slots=1, rows=2, window=4, heads=4, head_dim=32, dtype=torch.float32, device=DEVICE)

    def failure() -> str | None:
        return self_check.failure(
            config, made.layers, ring, expected=ReferenceBackend, actual=triton_backend.TritonBackend
        )

    assert failure() is None
    monkeypatch.setattr(triton_backend, "move_kept", lambda *arguments: None)
    assert "they left" in (failure() or "")
