"""Requests that go on with an earlier one's region, in SGLang's own tree, pools and `Req`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sglang_rpc.hooks import reuse
from sglang_rpc.runtime.pages import ceil_align
from tests.unit.reuse.life import PROMPT, SIZE, TAIL, D, P, R, T, World, output, retract, whole
from tests.unit.reuse.test_retracted import backups_of

GIVEN = [7, 8, 9, 11, 13]
DUE = 3 * P + R  #: the first of those who go on with the thought


@pytest.fixture(params=[1, 16], ids=["page 1", "page 16"])
def world(request, monkeypatch):
    made = World(request.param, monkeypatch, reuse="continue")
    yield made
    made.assert_balanced()


def text_of(thought, given=()) -> list[int]:
    return [*PROMPT, *output(thought), *given]


def begin(world, text):
    return world.admit(world.new(text))


class TestBeforeItsFirstCompression:
    def test_it_shares_what_the_thought_holds(self, world, thought):
        first, second = (begin(world, text_of(thought, [*GIVEN, n])) for n in (1, 2))
        for req in (first, second):
            assert req.rpc.continued.inherited == len(output(thought))
            assert req.rpc.continued.given == ((len(text_of(thought)), len(text_of(thought)) + 6),)
            assert world.held(req)[0][: len(PROMPT) + 2 * T + R] == thought.left[0][: len(PROMPT) + 2 * T + R]
        shared = whole(world, len(PROMPT) + 2 * T + R + TAIL - 1)
        rows = [world.rows.req_to_token[req.kv.req_pool_idx, :shared].tolist() for req in (first, second)]
        assert rows[0] == rows[1]
        for req in (first, second):
            world.decode(req, 5)
            assert world.held(req)[0][-1] == len(text_of(thought)) + 6 + 3
            world.finish(req)

    def test_a_fork_in_the_tail_inherits_up_to_there(self, world, thought):
        text = text_of(thought)[: len(PROMPT) + D + 20]
        req = begin(world, [*text, 5, 6])
        assert req.rpc.continued.inherited == D + 20
        assert req.rpc.continued.given == ((len(text), len(text) + 2),)
        world.decode(req, 1)
        world.finish(req)

    def test_never_compressed_it_is_gone_on_from_too(self, world, thought):
        req = begin(world, text_of(thought, GIVEN))
        world.decode(req, 4)
        world.finish(req)
        again = begin(world, [*text_of(thought, GIVEN), *output(req), 3])
        continued = again.rpc.continued
        assert continued.inherited == len(output(thought)) + 4
        assert [end - start for start, end in continued.given] == [5, 1]
        world.decode(again, 1)
        world.finish(again)


class TestCompressed:
    @pytest.fixture
    def req(self, world, thought):
        made = begin(world, text_of(thought, GIVEN))
        world.decode(made, DUE - len(output(thought)) + 1)
        return made

    def test_its_own_copy_has_what_was_given_first_and_one_region(self, world, thought, req):
        """Prompt, then what was given, then 3 T candidates of all that was generated, then the window."""
        held = world.held(req)
        told = len(text_of(thought))
        for layer in held:
            assert layer[: len(PROMPT)] == list(range(len(PROMPT)))
            assert layer[len(PROMPT) : len(PROMPT) + 5] == list(range(told, told + 5))
            region = layer[len(PROMPT) + 5 :]
            assert len(region) == 3 * T + R
            generated = {*range(len(PROMPT), told), *range(told + 5, told + 5 + 200)}
            assert region == sorted(region)
            assert set(region) <= generated
            assert region[-R:] == list(range(region[-1] - R + 1, region[-1] + 1))
        assert region[-1] == len(PROMPT) + 5 + DUE - 1
        world.finish(req)

    def test_the_thought_is_as_it_was(self, world, thought, req):
        again = begin(world, text_of(thought, [1]))
        count = len(PROMPT) + 2 * T + R
        assert [layer[:count] for layer in world.held(again)] == [layer[:count] for layer in thought.left]
        world.decode(again, 1)
        world.finish(again)
        world.finish(req)

    def test_it_leaves_the_thought_to_be_evicted(self, world, thought, req):
        world.evict()
        held = req.kv.kv_allocated_len - req.kv.cache_protected_len
        pages = -(-held // world.page) * world.page
        kept = whole(world, len(PROMPT))
        assert req.kv.cache_protected_len == kept
        assert world.allocator.available_size() == SIZE - pages - kept
        world.finish(req)

    def test_others_go_on_with_what_it_leaves(self, world, thought, req):
        world.decode(req, 20 + world.page)
        left = world.held(req)
        world.finish(req)
        text = [*text_of(thought, GIVEN), *output(req)]
        again = begin(world, [*text, 21, 22])
        continued = again.rpc.continued
        assert continued.inherited == len(output(thought)) + len(output(req))
        assert continued.given == ((len(text_of(thought)), len(text_of(thought)) + 5), (len(text), len(text) + 2))
        entries = len(PROMPT) + 5 + 3 * T + R
        assert [layer[:entries] for layer in world.held(again)] == [layer[:entries] for layer in left]
        world.decode(again, 4 * P + R - continued.inherited + 1)
        for layer in world.held(again):
            assert layer[len(PROMPT) : len(PROMPT) + 7] == [
                *range(len(text_of(thought)), len(text_of(thought)) + 5),
                *range(len(text), len(text) + 2),
            ]
            assert len(layer) == len(PROMPT) + 7 + 4 * T + R
        world.finish(again)

    def test_real_ids_when_it_has_ended(self, world, thought, req):
        world.finish(req)
        assert list(req.origin_input_ids) == text_of(thought, GIVEN)


class TestRetracted:
    """With a backup it comes back as it was, in whichever order its row lies; without, its region is its own tokens."""

    @pytest.mark.parametrize("compressed", [False, True])
    def test_without_a_backup(self, world, thought, compressed):
        req = begin(world, text_of(thought, GIVEN))
        world.decode(req, DUE - len(output(thought)) + 1 if compressed else 9)
        assert (req.rpc.totals.compressions > 0) == compressed
        assert retract(world, req, backups_of(world, 0))
        assert list(req.origin_input_ids) == text_of(thought, GIVEN)
        state = req.rpc
        assert (state.continued, state.taken) == (None, None)
        assert (state.inherited, state.evicted, state.totals.continued) == (0, 0, 0)
        world.admit(req)
        assert world.held(req)[0] == list(range(len(text_of(thought, GIVEN)) + len(output(req))))
        world.finish(req)

    @pytest.mark.parametrize("compressed", [False, True])
    def test_with_a_backup(self, world, thought, compressed):
        req = begin(world, text_of(thought, GIVEN))
        world.decode(req, DUE - len(output(thought)) + 1 if compressed else 9)
        before, clock = world.held(req), replace(req.rpc.clock)
        backups = backups_of(world, 2**24)
        assert retract(world, req, backups)
        saved = req.rpc.hooks.saved
        assert saved.clock == clock
        world.evict()
        req.init_next_round_input(world.tree)
        # What is matched of its prompt must be where its backup has it.
        matched = req.prefix_len
        assert matched <= saved.backup.tokens
        slots = world.allocator.alloc(ceil_align(saved.backup.tokens, world.page))
        backups.load(saved.backup, 0, slots[: saved.backup.tokens])
        loaded = [b[slots[: saved.backup.tokens], 0, 0].long().tolist() for b in world.buffers]
        assert loaded == [layer[: saved.backup.tokens] for layer in before]
        if matched:
            path = world.tree.prefix_device_indices(req)
            assert [b[path, 0, 0].long().tolist() for b in world.buffers] == [layer[:matched] for layer in before]
        world.allocator.free(slots)


def test_steps_shorter_than_an_interval_are_one_region(world):
    text, compressed = list(PROMPT), 0
    for _ in range(12):
        req = begin(world, text)
        world.decode(req, 25)
        compressed += req.rpc.totals.compressions
        world.finish(req)
        text += output(req)
    # What was compressed no whole page before a step's end is prefilled again, and compressed again in the next.
    assert compressed == (12 * 25 - 1 - R) // P if world.page == 1 else compressed >= 4
    assert req.rpc.inherited == 11 * 25
    assert req.rpc.continued.given == ()


def test_where_the_pool_never_holds_both_it_goes_on_as_share(world, thought, monkeypatch):
    req = begin(world, text_of(thought, GIVEN))
    monkeypatch.setattr(world.runtime.scheduler, "max_total_num_tokens", 150)
    monkeypatch.setattr(world.allocator, "alloc", refusing(world))
    before = world.held(req)[0]
    world.decode(req, DUE - len(output(thought)) + 1)
    assert req.rpc.continued is None
    assert (req.rpc.inherited, req.rpc.evicted, req.rpc.totals.continued) == (0, 0, 0)
    assert world.held(req)[0][: len(before)] == before
    assert reuse.in_force(req) is not None
    world.finish(req)


def refusing(world):
    """No more than a page at once."""
    alloc = world.allocator.alloc
    return lambda size: None if size > world.page else alloc(size)
