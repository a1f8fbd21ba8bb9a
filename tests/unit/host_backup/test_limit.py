"""Prompts are kept once for their sharers, and what is counted is what is held: whole chunks, never above the limit."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.host_backup.pool import (
    CHUNK,
    DTYPES,
    ENTRY,
    LAYERS,
    assert_restored,
    backups_of,
    bytes_of,
    held,
    overwrite,
    pool,
    scattered,
)

# --- prompts that are shared ------------------------------------------------------------------------------------


def test_samples_share_their_prompt():
    layers = pool()
    backups = backups_of(layers)
    was, prompt = bytes_of(layers), scattered(20, seed=1)
    rows = [torch.cat([prompt, torch.arange(30) + 30 * n]) for n in range(2)]
    first, second = (backups.save(row, 20, ("", (1, 2)), None) for row in rows)
    assert second.prompt is first.prompt
    assert backups.used == held(20 * ENTRY, 30 * ENTRY, 30 * ENTRY)
    overwrite(layers, seed=2)
    for backup, row in ((first, rows[0]), (second, rows[1])):
        assert_restored(layers, backups, backup, 7, was, row)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.booleans()), max_size=40), st.integers(0, 60))
def test_stages_with_other_numbers_of_layers_have_room_for_the_same_backups(requests, chunks):
    """The first stage has all the layers, the second one of them; each says what it needs for an entry."""
    layers, queries = pool(), torch.zeros(LAYERS, 50, dtype=torch.uint8)
    stages = [(backups_of(own, chunks * CHUNK), queries[: len(own)]) for own in (layers, layers[:1])]
    for backups, _ in stages:
        backups.charge(max(each.entry_bytes for each, _ in stages), queries.nbytes)
    saved: list[list] = [[], []]
    for key, generated, drops in requests:
        row = torch.arange(10 + generated)
        made = [backups.save(row, 10, key, own) for backups, own in stages]
        assert (made[0] is None) == (made[1] is None)
        assert stages[0][0].used == stages[1][0].used
        for each, (backups, _), own in zip(made, stages, saved, strict=True):
            if each is not None:
                own.append(each)
            if drops and own:
                backups.drop(own.pop(0))
    assert stages[0][0].used == stages[1][0].used


def test_another_key_is_another_prompt():
    backups = backups_of(pool())
    keys = [("", (1, 2)), ("adapter", (1, 2)), ("", (1, 3)), (None, (1, 2))]
    saved = [backups.save(torch.arange(30), 20, key, None) for key in keys]
    assert len({id(backup.prompt) for backup in saved}) == 4
    assert backups.used == 4 * held(20 * ENTRY, 10 * ENTRY)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_prompt_goes_with_its_last_sharer(order):
    layers = pool()
    backups = backups_of(layers)
    was, generated = bytes_of(layers), (5, 10, 15)
    rows = [torch.cat([torch.arange(20), 20 + scattered(n, seed=n) % 70]) for n in generated]
    saved = [backups.save(row, 20, "shared", None) for row in rows]
    other = backups.save(torch.arange(8), 3, "other", None)
    overwrite(layers, seed=2)
    left = set(range(3))
    for dropped in order:
        backups.drop(saved[dropped])
        left.remove(dropped)
        own = [generated[n] * ENTRY for n in left]
        assert backups.used == held(*own, 20 * ENTRY if left else 0, 3 * ENTRY, 5 * ENTRY)
        # What comes now takes the chunks that were given back, and no sharer's.
        passing = backups.save(scattered(10, seed=dropped), 4, "passing", None)
        for n in left:
            assert_restored(layers, backups, saved[n], 0, was, rows[n])
        backups.drop(passing)
    backups.drop(other)
    assert backups.used == 0
    # It is gone: the next of its kind brings its own.
    again = backups.save(rows[0], 20, "shared", None)
    assert backups.used == held(20 * ENTRY, 5 * ENTRY)
    assert again.prompt is not saved[0].prompt


def test_nothing_is_dropped_twice():
    backups = backups_of(pool())
    backup = backups.save(torch.arange(10), 4, "key", None)
    backups.drop(backup)
    with pytest.raises(KeyError):
        backups.drop(backup)
    assert backups.used == 0


# --- the limit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_limit_is_kept_to_the_chunk(dtype):
    layers, row, queries = pool(dtype), torch.arange(50), torch.zeros(LAYERS, 4, 2, 5)
    entry = ENTRY * dtype.itemsize // 2
    needed = held(20 * entry, 30 * entry, queries.nbytes)
    assert backups_of(layers, needed - 1).save(row, 20, "key", queries) is None
    backups = backups_of(layers, needed)
    backup = backups.save(row, 20, "key", queries)
    assert backup is not None
    assert backups.used == needed == backups.limit
    chunks = [*backup.prompt.bytes.chunks, *backup.generated.bytes.chunks, *backup.queries.chunks]
    assert sum(chunk.nbytes for chunk in chunks) == needed
    assert all(chunk.device.type == "cpu" for chunk in chunks)


def test_a_shared_prompt_is_not_counted_again():
    row = torch.arange(50)
    one, two = held(20 * ENTRY, 30 * ENTRY), held(20 * ENTRY, 30 * ENTRY, 30 * ENTRY)
    for limit, fits in ((two, True), (two - 1, False)):
        backups = backups_of(pool(), limit)
        first = backups.save(row, 20, "key", None)
        second = backups.save(row, 20, "key", None)
        assert (second is not None) is fits
        assert backups.used == (two if fits else one)
        assert backups.save(row, 20, "other", None) is None
        # The refused ones share nothing: the prompt goes with those that were taken.
        for backup in (first, second):
            if backup is not None:
                backups.drop(backup)
        assert backups.used == 0
        assert backups.save(row, 20, "other", None) is not None
        assert backups.used == one


@pytest.mark.parametrize("limit", [0, 1, CHUNK - 1])
def test_without_a_chunk_nothing_is_kept(limit):
    backups = backups_of(pool(), limit)
    assert backups.limit == 0
    assert backups.save(torch.arange(1), 1, "key", None) is None
    assert backups.save(torch.arange(1), 0, "key", None) is None
    assert backups.used == 0


def test_a_refused_row_leaves_everything_as_it_was():
    layers = pool()
    backups = backups_of(layers, held(20 * ENTRY, 30 * ENTRY) + CHUNK)
    row, was = scattered(50, seed=1), bytes_of(layers)
    backup, queries = backups.save(row, 20, "key", None), torch.zeros(CHUNK, dtype=torch.uint8)
    used = backups.used
    assert backups.save(row, 20, "another", None) is None
    assert backups.save(row[:25], 20, "key", None) is None
    assert backups.save(row[:21], 20, "key", queries) is None  # its entries fit, its queries do not
    assert backups.used == used
    small = backups.save(row[:21], 20, "key", None)  # what was left before is left now
    assert backups.used == used + CHUNK
    overwrite(layers, seed=2)
    assert_restored(layers, backups, backup, 0, was, row)
    for each in (small, backup):
        backups.drop(each)
    assert backups.used == 0


@given(st.data())
def test_used_is_what_is_held(data):
    limit = data.draw(st.integers(0, 200)) * ENTRY + data.draw(st.integers(0, ENTRY - 1))
    backups, lengths, kept = backups_of(pool(), limit), {"a": 7, "b": 20, "c": 0}, []
    assert backups.limit == limit // CHUNK * CHUNK
    for _ in range(data.draw(st.integers(0, 25))):
        if kept and data.draw(st.booleans()):
            backups.drop(kept.pop(data.draw(st.integers(0, len(kept) - 1)))[1])
        else:
            key, generated = data.draw(st.sampled_from("abc")), data.draw(st.integers(1, 60))
            queries = torch.zeros(data.draw(st.integers(1, 99))) if data.draw(st.booleans()) else None
            prompt = 0 if key in {k for k, _ in kept} else lengths[key] * ENTRY
            expected = held(prompt, generated * ENTRY, 0 if queries is None else queries.nbytes)
            before = backups.used
            backup = backups.save(torch.arange(lengths[key] + generated), lengths[key], key, queries)
            assert (backup is not None) is (before + expected <= backups.limit)
            if backup is not None:
                kept.append((key, backup))
        parts = [b.generated.bytes for _, b in kept] + [b.queries for _, b in kept if b.queries is not None]
        parts += {k: b.prompt.bytes for k, b in kept}.values()
        chunks = [chunk.data_ptr() for part in parts for chunk in part.chunks]
        assert len(chunks) == len(set(chunks))  # no chunk has two owners
        assert backups.used == len(chunks) * CHUNK <= backups.limit <= limit
    for _, backup in kept:
        backups.drop(backup)
    assert backups.used == 0
