"""KV on the host and back: no byte lost, and none but the row's."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.config import RPCConfig
from sglang_rpc.memory import host_backup
from sglang_rpc.types import KVLayer
from tests.loops import decode_loop
from tests.loops.decode_loop import Loop
from tests.unit.host_backup.pool import (
    DTYPES,
    ENTRY,
    K_DIM,
    KV_HEADS,
    LAYERS,
    assert_restored,
    backups_of,
    bytes_of,
    held,
    overwrite,
    pool,
    scattered,
)


@pytest.mark.parametrize("staging", [1, 100, host_backup.STAGING_BYTES])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("prompt", "generated", "first"),
    [
        (20, 30, 0),  # the tree has dropped the prompt
        (20, 30, 16),  # part of it is there
        (20, 30, 19),
        (20, 30, 20),  # all of it
        (20, 30, 21),  # and something of what was generated
        (20, 30, 49),
        (20, 30, 50),  # nothing to restore
        (0, 30, 0),
        (20, 0, 0),
        (1, 1, 1),
    ],
)
def test_every_byte_comes_back(dtype, prompt, generated, first, staging, monkeypatch):
    monkeypatch.setattr(host_backup, "STAGING_BYTES", staging)  # of 1, one entry at a time
    layers = pool(dtype)
    backups = backups_of(layers)
    row, was = scattered(prompt + generated, seed=1), bytes_of(layers)
    backup = backups.save(row, prompt, "key", None)
    assert (backup.prompt.tokens, backup.generated.tokens, backup.tokens) == (prompt, generated, prompt + generated)
    assert all(torch.equal(now, old) for now, old in zip(bytes_of(layers), was, strict=True))  # saving changes nothing
    overwrite(layers, seed=2)  # the slots go to others
    assert_restored(layers, backups, backup, first, was, row)


def test_a_latent_is_kept_once():
    """MLA: the values are a part of the keys."""
    layers = [KVLayer(layer.keys, layer.keys[..., :1], layer.dtype, layer.scaling) for layer in pool()]
    backups = backups_of(layers)
    row, was = scattered(30, seed=1), [layer.keys.clone() for layer in layers]
    backup = backups.save(row, 20, "key", None)
    latent = LAYERS * KV_HEADS * K_DIM * 2
    assert backups.used == held(20 * latent, 10 * latent)
    for layer in layers:
        layer.keys.zero_()
    backups.load(backup, 5, row[5:])
    for layer, old in zip(layers, was, strict=True):
        assert torch.equal(layer.keys[row[5:]].view(torch.uint8), old[row[5:]].view(torch.uint8))
        assert not layer.keys[row[:5]].any()


@given(st.data())
def test_any_row_from_any_position(data):
    prompt, generated = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 50))
    first = data.draw(st.integers(0, prompt + generated))
    layers = pool(data.draw(st.sampled_from(list(DTYPES))), accumulated=data.draw(st.booleans()))
    backups = backups_of(layers, 2**17, data.draw(st.sampled_from([16, 64, 256, 4096])))
    row, was = scattered(prompt + generated, seed=prompt), bytes_of(layers)
    backup = backups.save(row, prompt, "key", None)
    overwrite(layers, seed=2)
    assert_restored(layers, backups, backup, first, was, row)


def test_it_can_come_back_twice():
    # SGLang may not admit the request after all: it is restored again later, from the same backup.
    layers = pool()
    backups = backups_of(layers)
    row, was = scattered(40, seed=1), bytes_of(layers)
    backup = backups.save(row, 12, "key", None)
    for seed in (2, 3):
        overwrite(layers, seed)
        assert_restored(layers, backups, backup, 5, was, row)
    backups.drop(backup)
    assert backups.used == 0


def test_what_attention_has_been_added_up_comes_back_too():
    """H2O: each layer has a third buffer, of another dtype."""
    layers = pool(accumulated=True)
    backups = backups_of(layers)
    row, was = scattered(40, seed=1), bytes_of(layers)
    backup = backups.save(row, 12, "key", None)
    entry = ENTRY + LAYERS * KV_HEADS * 4
    assert backups.used == held(12 * entry, 28 * entry)
    overwrite(layers, seed=2)
    assert_restored(layers, backups, backup, 5, was, row)


def test_what_is_restored_does_not_need_the_backup_any_more():
    layers = pool()
    backups = backups_of(layers, held(12 * ENTRY, 28 * ENTRY))
    row, was, into = scattered(40, seed=1), bytes_of(layers), torch.arange(40)
    backup = backups.save(row, 12, "key", None)
    overwrite(layers, seed=2)
    backups.load(backup, 0, into)
    backups.drop(backup)
    another = backups.save(torch.arange(40, 80), 12, "another", None)
    assert {chunk.data_ptr() for chunk in backup.generated.bytes.chunks} & {  # which took its chunks
        chunk.data_ptr() for chunk in another.generated.bytes.chunks
    }
    for now, old in zip(bytes_of(layers), was, strict=True):
        assert torch.equal(now[into], old[row])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_queries_are_a_copy_of_the_slot(dtype):
    backups = backups_of(pool())
    ring = torch.arange(2 * 4 * 3 * 2 * 21.0).view(2, 4, 3, 2, 21).to(dtype)
    wanted, others = ring[:, 2].clone(), ring[:, [0, 3]].clone()
    backup = backups.save(torch.arange(10), 4, "key", ring[:, 2])
    assert backups.used == held(4 * ENTRY, 6 * ENTRY, wanted.nbytes)
    ring[:, 1:3] = 0
    backups.load_queries(backup, ring[:, 1])
    assert torch.equal(ring[:, 1], wanted)
    assert torch.equal(ring[:, [0, 3]], others)
    assert not ring[:, 2].any()
    backups.drop(backup)
    assert backups.used == 0


def test_a_request_goes_on_as_if_it_had_never_left():
    """Whenever it leaves: while nothing is due, while its window is recorded, just compressed, compressed twice."""
    stays = Loop(RPCConfig(interval=12, window=4, ratio=3, scope="all"))
    request, left = stays.add(), []
    for _ in range(34):
        stays.run(1)
        loop = copy.deepcopy(stays)
        (leaving,) = loop.requests
        backups = backups_of(loop.layers)
        held = loop.held(leaving)
        loop.leave(leaving, backups)
        assert loop.ring.in_use == 0
        assert sorted(loop.free) == list(range(decode_loop.POOL))
        assert backups.used > 0
        for layer in loop.layers:
            layer.keys.fill_(7.0)
            layer.values.fill_(-2.0)
        loop.come_back(leaving, row=3, backups=backups)
        assert backups.used == 0
        assert loop.held(leaving) == held
        left.append((loop, leaving))
    stays.run(40 - 34)
    for loop, leaving in left:
        loop.run(40 - leaving.generated)
        assert leaving.done == request.done == [(16, 1, False), (28, 2, False), (40, 3, False)]
        assert loop.held(leaving) == stays.held(request)
        loop.finish(leaving)
        assert loop.ring.in_use == 0
        assert sorted(loop.free) == list(range(decode_loop.POOL))


def test_a_window_that_was_recorded_in_vain_is_not_kept():
    # Recorded ahead, but its due date is far: it comes back without a query slot, and takes one when it is due.
    loop = Loop(RPCConfig(interval=12, window=4, ratio=3, scope="all"))
    request, backups = loop.add(), backups_of(loop.layers)
    loop.run(5)
    assert loop.record_ahead(request)
    loop.run(4)
    loop.leave(request, backups)
    assert request.state.hooks.saved.backup.queries is None
    assert loop.ring.in_use == 0
    loop.come_back(request, row=2, backups=backups)
    loop.run(2)
    assert request.state.recording.slot is None
    assert not request.state.recording.ahead
    loop.run(20)
    assert request.done == [(16, 1, False), (28, 2, False)]
    assert request.state.totals.late == 0
