"""KV on the host and back: no byte lost, no byte too many, and not one above the bound."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.host_backup import Backup, HostBackup
from sglang_rpc.types import KVLayer
from tests.loops import decode_loop
from tests.loops.decode_loop import Loop

POOL, LAYERS, KV_HEADS, K_DIM, V_DIM = 96, 3, 2, 6, 4
#: storage dtype -> what it stands for
DTYPES = {
    torch.bfloat16: torch.bfloat16,
    torch.float16: torch.float16,
    torch.float32: torch.float32,
    torch.uint8: torch.float8_e4m3fn,
}
ENTRY = LAYERS * KV_HEADS * (K_DIM + V_DIM) * 2  #: bytes of one entry in bfloat16, all layers
AMPLE = 10**9


def pool(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> list[KVLayer]:
    """Random bytes, NaN patterns included: a copy must not care what they mean."""
    generator = torch.Generator().manual_seed(seed)

    def buffer(dim: int) -> torch.Tensor:
        shape = (POOL, KV_HEADS, dim * dtype.itemsize)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).view(dtype)

    return [KVLayer(buffer(K_DIM), buffer(V_DIM), DTYPES[dtype], 1.0) for _ in range(LAYERS)]


def bytes_of(layers: list[KVLayer]) -> list[torch.Tensor]:
    """The whole pool, as bytes: two a layer."""
    return [buffer.clone().view(torch.uint8) for layer in layers for buffer in (layer.keys, layer.values)]


def overwrite(layers: list[KVLayer], seed: int) -> None:
    for layer, other in zip(layers, pool(layers[0].keys.dtype, seed), strict=True):
        layer.keys.copy_(other.keys)
        layer.values.copy_(other.values)


def scattered(entries: int, seed: int) -> torch.Tensor:
    return torch.randperm(POOL, generator=torch.Generator().manual_seed(seed))[:entries]


def assert_restored(layers: list[KVLayer], backups: HostBackup, backup: Backup, first: int, was: list, row) -> None:
    """Restored behind `first` into other slots, the pool holds the row's bytes there, and elsewhere what it held."""
    into = scattered(backup.tokens, seed=99)[first:]
    wanted = bytes_of(layers)
    for new, old in zip(wanted, was, strict=True):
        new[into] = old[row[first:]]
    backups.load(backup, first, into)
    assert all(torch.equal(found, want) for found, want in zip(bytes_of(layers), wanted, strict=True))


# --- what comes back --------------------------------------------------------------------------------------------


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
def test_every_byte_comes_back(dtype, prompt, generated, first):
    layers = pool(dtype)
    backups = HostBackup(layers, AMPLE)
    row, was = scattered(prompt + generated, seed=1), bytes_of(layers)
    backup = backups.save(row, prompt, "key", None)
    assert (backup.prompt.tokens, backup.generated.tokens, backup.tokens) == (prompt, generated, prompt + generated)
    assert all(torch.equal(now, old) for now, old in zip(bytes_of(layers), was, strict=True))  # saving changes nothing
    overwrite(layers, seed=2)  # the slots go to others
    assert_restored(layers, backups, backup, first, was, row)


def test_a_latent_is_kept_once():
    """MLA: the values are a part of the keys."""
    layers = [KVLayer(layer.keys, layer.keys[..., :1], layer.dtype, layer.scaling) for layer in pool()]
    backups = HostBackup(layers, AMPLE)
    row, was = scattered(30, seed=1), [layer.keys.clone() for layer in layers]
    backup = backups.save(row, 20, "key", None)
    assert backups.used == 30 * LAYERS * KV_HEADS * K_DIM * 2
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
    layers = pool(data.draw(st.sampled_from(list(DTYPES))))
    backups = HostBackup(layers, AMPLE)
    row, was = scattered(prompt + generated, seed=prompt), bytes_of(layers)
    backup = backups.save(row, prompt, "key", None)
    overwrite(layers, seed=2)
    assert_restored(layers, backups, backup, first, was, row)


def test_it_can_come_back_twice():
    # SGLang may not admit the request after all: it is restored again later, from the same backup.
    layers = pool()
    backups = HostBackup(layers, AMPLE)
    row, was = scattered(40, seed=1), bytes_of(layers)
    backup = backups.save(row, 12, "key", None)
    for seed in (2, 3):
        overwrite(layers, seed)
        assert_restored(layers, backups, backup, 5, was, row)
    backups.drop(backup)
    assert backups.used == 0


def test_what_is_restored_does_not_need_the_backup_any_more():
    layers = pool()
    backups = HostBackup(layers, AMPLE)
    row, was = scattered(40, seed=1), bytes_of(layers)
    backup = backups.save(row, 12, "key", None)
    backups.drop(backup)
    overwrite(layers, seed=2)
    assert_restored(layers, backups, backup, 0, was, row)  # a copy in flight keeps its memory


def test_the_queries_are_a_copy_of_the_slot():
    backups = HostBackup(pool(), AMPLE)
    ring = torch.arange(2 * 4 * 3 * 2 * 2.0).view(2, 4, 3, 2, 2)
    wanted = ring[:, 2].clone()
    backup = backups.save(torch.arange(10), 4, "key", ring[:, 2])
    assert backups.used == 10 * ENTRY + wanted.nbytes
    ring.zero_()
    assert torch.equal(backup.queries, wanted)
    backups.drop(backup)
    assert backups.used == 0


# --- prompts that are shared ------------------------------------------------------------------------------------


def test_samples_share_their_prompt():
    layers = pool()
    backups = HostBackup(layers, AMPLE)
    was, prompt = bytes_of(layers), scattered(20, seed=1)
    rows = [torch.cat([prompt, torch.arange(30) + 30 * n]) for n in range(2)]
    first, second = (backups.save(row, 20, ("", (1, 2)), None) for row in rows)
    assert second.prompt is first.prompt
    assert backups.used == (20 + 30 + 30) * ENTRY
    overwrite(layers, seed=2)
    for backup, row in ((first, rows[0]), (second, rows[1])):
        assert_restored(layers, backups, backup, 7, was, row)


def test_another_key_is_another_prompt():
    backups = HostBackup(pool(), AMPLE)
    keys = [("", (1, 2)), ("adapter", (1, 2)), ("", (1, 3)), (None, (1, 2))]
    saved = [backups.save(torch.arange(30), 20, key, None) for key in keys]
    assert len({id(backup.prompt) for backup in saved}) == 4
    assert backups.used == 4 * 30 * ENTRY


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_prompt_goes_with_its_last_sharer(order):
    layers = pool()
    backups = HostBackup(layers, AMPLE)
    was, generated = bytes_of(layers), (5, 10, 15)
    rows = [torch.cat([torch.arange(20), 20 + scattered(n, seed=n) % 70]) for n in generated]
    saved = [backups.save(row, 20, "shared", None) for row in rows]
    other = backups.save(torch.arange(8), 3, "other", None)
    overwrite(layers, seed=2)
    left = set(range(3))
    for dropped in order:
        backups.drop(saved[dropped])
        left.remove(dropped)
        assert backups.used == (sum(generated[n] for n in left) + (20 if left else 0) + 8) * ENTRY
        for n in left:
            assert_restored(layers, backups, saved[n], 0, was, rows[n])
    backups.drop(other)
    assert backups.used == 0
    # It is gone: the next of its kind brings its own.
    again = backups.save(rows[0], 20, "shared", None)
    assert backups.used == 25 * ENTRY
    assert again.prompt is not saved[0].prompt


def test_nothing_is_dropped_twice():
    backups = HostBackup(pool(), AMPLE)
    backup = backups.save(torch.arange(10), 4, "key", None)
    backups.drop(backup)
    with pytest.raises(KeyError):
        backups.drop(backup)
    assert backups.used == 0


# --- the bound --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bound_is_kept_to_the_byte(dtype):
    layers, row, queries = pool(dtype), torch.arange(50), torch.zeros(LAYERS, 4, 2, 5)
    needed = 50 * ENTRY * dtype.itemsize // 2 + queries.nbytes
    assert HostBackup(layers, needed - 1).save(row, 20, "key", queries) is None
    backups = HostBackup(layers, needed)
    backup = backups.save(row, 20, "key", queries)
    assert backup is not None
    assert backups.used == needed == backups.limit
    held = [*backup.prompt.buffers, *backup.generated.buffers, backup.queries]
    assert sum(buffer.nbytes for buffer in held) == needed
    assert all(buffer.device.type == "cpu" for buffer in held)


def test_a_shared_prompt_is_not_counted_again():
    row = torch.arange(50)
    for limit, fits in ((80 * ENTRY, True), (80 * ENTRY - 1, False)):
        backups = HostBackup(pool(), limit)
        first = backups.save(row, 20, "key", None)
        second = backups.save(row, 20, "key", None)
        assert (second is not None) is fits
        assert backups.used == (80 if fits else 50) * ENTRY
        assert backups.save(row, 20, "other", None) is None
        # The refused ones share nothing: the prompt goes with those that were taken.
        for backup in (first, second):
            if backup is not None:
                backups.drop(backup)
        assert backups.used == 0
        assert backups.save(row, 20, "other", None) is not None
        assert backups.used == 50 * ENTRY


def test_without_host_memory_nothing_is_kept():
    backups = HostBackup(pool(), 0)
    assert backups.save(torch.arange(1), 1, "key", None) is None
    assert backups.save(torch.arange(1), 0, "key", None) is None
    assert backups.used == 0


@given(st.data())
def test_used_is_what_is_held(data):
    limit = data.draw(st.integers(0, 200)) * ENTRY + data.draw(st.integers(0, ENTRY - 1))
    backups, lengths, held = HostBackup(pool(), limit), {"a": 7, "b": 20, "c": 0}, []
    for _ in range(data.draw(st.integers(0, 25))):
        if held and data.draw(st.booleans()):
            backups.drop(held.pop(data.draw(st.integers(0, len(held) - 1)))[1])
        else:
            key, generated = data.draw(st.sampled_from("abc")), data.draw(st.integers(1, 60))
            queries = torch.zeros(data.draw(st.integers(1, 99))) if data.draw(st.booleans()) else None
            expected = generated * ENTRY + (0 if queries is None else queries.nbytes)
            expected += 0 if key in {k for k, _ in held} else lengths[key] * ENTRY
            before = backups.used
            backup = backups.save(torch.arange(lengths[key] + generated), lengths[key], key, queries)
            assert (backup is not None) is (before + expected <= limit)
            if backup is not None:
                held.append((key, backup))
        own = sum(b.generated.nbytes + (0 if b.queries is None else b.queries.nbytes) for _, b in held)
        assert backups.used == own + sum({k: b.prompt.nbytes for k, b in held}.values()) <= limit
    for _, backup in held:
        backups.drop(backup)
    assert backups.used == 0


# --- a request that leaves and comes back -----------------------------------------------------------------------


def test_a_request_goes_on_as_if_it_had_never_left():
    """Whenever it leaves: while nothing is due, while its window is recorded, just compressed, compressed twice."""
    stays = Loop(RPCConfig(interval=12, window=4, ratio=3, scope="all"))
    request, left = stays.add(), []
    for _ in range(34):
        stays.run(1)
        loop = copy.deepcopy(stays)
        (leaving,) = loop.requests
        backups = HostBackup(loop.layers, AMPLE)
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
    request, backups = loop.add(), HostBackup(loop.layers, AMPLE)
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
