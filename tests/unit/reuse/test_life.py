"""What a compressed request leaves, and what later ones take over of it: entry by entry, in SGLang's tree."""

from __future__ import annotations

import pytest

from sglang_rpc.hooks import resume, reuse
from sglang_rpc.runtime.aliases import FIRST_VIRTUAL
from tests.unit.reuse.life import PROMPT, TAIL, D, P, R, T, output, whole


def test_a_continuation_holds_the_producers_entries_and_computes_the_rest_alone(world, thought):
    text = PROMPT + output(thought)
    req = world.admit(world.new([*text, 7, 8]))
    held = 2 * T + R  # of D generated
    shared = whole(world, len(PROMPT) + held + TAIL - 1)
    assert [layer[:shared] for layer in world.held(req)] == [layer[:shared] for layer in thought.left]
    logical = shared + D - held
    assert world.held(req)[0][shared:] == list(range(logical, len(text) + 2))
    assert req.computed == [*text, 7, 8][logical:]
    assert req.already_computed == held - D  # which makes SGLang's `cached_tokens` logical
    assert (req.rpc.totals.reused, req.rpc.totals.reused_held) == (D, held)
    world.finish(req)


@pytest.mark.parametrize("tokens", [D, D + 1, D + 2, D + R, D + P - 1, D + P])
def test_at_any_moment_after_its_last_compression(world, tokens):
    """The newest token has no entry, so D + 1 tokens are the first of which D are held compressed."""
    thought = world.think(PROMPT, tokens)
    compressed = (tokens - 1 - R) // P
    left = world.tree.evictable_size()
    assert thought.rpc.clock.compressed_at == compressed * P + R
    text = PROMPT + output(thought)
    more = [7] * world.page
    req = world.admit(world.new(text + more))
    entries = len(thought.left[0])
    publishable = whole(world, entries) >= len(PROMPT) + compressed * T + R
    assert left == whole(world, entries if publishable else len(PROMPT))  # nothing that nobody can reach
    assert bool(req.rpc.totals.reused) == publishable
    if publishable:
        assert [layer[: whole(world, entries)] for layer in world.held(req)] == [
            layer[: whole(world, entries)] for layer in thought.left
        ]
    else:
        assert req.rpc.not_reused.startswith("its prompt begins with nothing")
        assert req.computed == (text + more)[whole(world, len(PROMPT)) :]
    world.finish(req)


def test_a_fork_at_every_point_of_the_tail(world, thought):
    text = PROMPT + output(thought)
    first = len(PROMPT) + D
    for point in range(first, len(text)):
        req = world.admit(world.new([*text[:point], 9]))
        shared = whole(world, point - (D - 2 * T - R))
        if shared < len(PROMPT) + 2 * T + R:  # the page that the compressed entries end in
            assert not req.rpc.totals.reused
            assert req.rpc.not_reused == reuse.UNKNOWN
        else:
            assert req.rpc.totals.reused == D
            assert [layer[:shared] for layer in world.held(req)] == [layer[:shared] for layer in thought.left]
        assert world.held(req)[0][-1] == point
        world.finish(req)


def test_a_text_that_parts_within_the_page_of_the_last_compressed_entries_spoils_nothing(world, thought):
    """It shares none of that page, so it takes over nothing; a request with the whole text still does."""
    text = PROMPT + output(thought)
    known = len(world.runtime.aliases)
    tail = -(len(PROMPT) + 2 * T + R) % world.page  # tokens in that page
    for point in range(len(PROMPT) + D, len(text)):
        req = world.admit(world.new([*text[:point], *[9] * (2 * world.page)]))
        assert bool(req.rpc.totals.reused) == (point >= len(PROMPT) + D + tail)
        world.finish(req)
    assert len(world.runtime.aliases) == known
    assert world.runtime.compressor.counters.stale_aliases == 0
    req = world.admit(world.new([*text, 9]))
    assert req.rpc.totals.reused == D
    world.finish(req)


def test_aborted_while_it_waits_its_real_ids_are_back(world, thought):
    text = [*PROMPT, *output(thought), 9]
    req = world.new(text)
    assert list(req.origin_input_ids) != text
    resume.forget_aborted(world.rows, req)
    assert list(req.origin_input_ids) == text


def test_before_the_compression_only_the_prompt_matches(world, thought):
    text = PROMPT + output(thought)[: D - 1]
    req = world.admit(world.new([*text, 9]))
    assert not req.rpc.totals.reused
    assert req.computed == [*text, 9][whole(world, len(PROMPT)) :]
    world.finish(req)


def test_eight_forks_hold_the_thought_once(world, thought):
    text = PROMPT + output(thought)
    before = world.allocator.available_size()
    forks = [world.admit(world.new([*text, 7, 8, 9, 1000 + i])) for i in range(8)]
    taken = before - world.allocator.available_size()
    assert taken <= 8 * (2 * world.page + 4)
    assert world.tree.protected_size() >= whole(world, len(PROMPT) + 2 * T + R)
    for fork in forks:
        world.finish(fork)


def test_chains_and_forks_of_forks(world, thought):
    text = PROMPT + output(thought)
    first = world.think([*text, 7, 7], P + R + 20)  # compressed in its turn
    second = [*text, 7, 7, *output(first)]
    req = world.admit(world.new([*second, 8]))
    assert [len(s.virtual_ids) for s in req.rpc.taken.alias.spans] == [2 * T + R, T + R]
    shared = whole(world, len(first.left[0]))
    assert [layer[:shared] for layer in world.held(req)] == [layer[:shared] for layer in first.left]
    assert world.held(req)[0][shared:][-1] == len(second)
    world.decode(req, 40)  # never compressed itself, it needs no alias of its own
    world.finish(req)
    third = [*second, 8, *output(req)]
    known = len(world.runtime.aliases)
    req = world.admit(world.new([*third, 9]))
    assert len(world.runtime.aliases) == known
    assert len(req.computed) <= 2 + world.page
    world.finish(req)
    other = world.admit(world.new([*text, 5]))  # from the first's end again
    assert other.rpc.totals.reused == D
    world.finish(other)


def test_evicted_between_arrival_and_admission_it_is_prefilled_whole(world, thought):
    text = [*PROMPT, *output(thought), 9]
    req = world.new(text)
    assert max(req.origin_input_ids) >= FIRST_VIRTUAL
    world.evict()
    world.admit(req)
    assert req.computed == text
    assert list(req.origin_input_ids) == text
    assert reuse.offset_of(req) == 0
    assert req.rpc.not_reused == reuse.EVICTED
    assert world.runtime.compressor.counters.stale_aliases == 1
    assert len(world.runtime.aliases) == 0
    world.finish(req)


def test_evicted_as_far_as_an_earlier_state_it_goes_on_from_there(world, thought):
    """The leaf goes first: the second compression's entries, and with them its alias."""
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams

    first = world.think([*PROMPT, *output(thought), 7, 7], P + R + 20)
    text = [*PROMPT, *output(thought), 7, 7, *output(first), 8]
    req = world.new(text)
    assert len(req.rpc.taken.alias.spans) == 2
    world.tree.evict(EvictParams(num_tokens=world.page))
    world.admit(req)
    assert len(req.rpc.taken.alias.spans) == 1
    assert world.held(req)[0][-1] == len(text) - 1
    world.finish(req)


def test_another_thought_of_the_same_prompt_is_not_mistaken_for_an_evicted_one(world, thought):
    text = [*PROMPT, *output(thought), 9]
    world.evict()
    world.voice += 5000
    other = world.think(PROMPT, D + TAIL)
    assert output(other) != output(thought)
    req = world.admit(world.new(text))
    assert req.computed == text[whole(world, len(PROMPT)) :]
    assert req.rpc.not_reused == reuse.EVICTED
    world.finish(req)


def test_after_a_flush_nothing_is_known(world, thought):
    text = [*PROMPT, *output(thought), 9]
    waiting = world.new(text)
    world.tree.reset()
    world.allocator.clear()
    assert len(world.runtime.aliases) == 0
    assert world.new(text).rpc.taken is None
    world.admit(waiting)
    assert waiting.computed == text
    world.finish(waiting)


def test_an_aborted_one_can_be_gone_on_from(world):
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    req = world.admit(world.new(PROMPT))
    world.decode(req, D + 40)
    req.to_finish = FINISH_ABORT("stopped")
    req.update_finish_state()
    assert req.finished()
    world.common.release_kv_cache(req, world.tree, checkpoint=True)
    again = world.admit(world.new([*PROMPT, *output(req), 9]))
    assert again.rpc.totals.reused == D
    world.finish(again)


def test_its_real_ids_are_back_once_it_has_ended(world, thought):
    text = [*PROMPT, *output(thought), 9]
    req = world.think(text, 5, return_logprob=True, logprob_start_len=len(text))
    assert list(req.origin_input_ids) == text
    assert req.logprob_start_len == len(text)
    assert reuse.offset_of(req) == 0
    assert req.rpc.receipt(5)["reused"] == D


def test_a_replaced_prompt_takes_nothing_over(world, thought):
    """SGLang gives a request that it aborts another prompt."""
    req = world.new([*PROMPT, *output(thought), 9])
    req.origin_input_ids = req.origin_input_ids[:1]
    assert reuse.offset_of(req) == 0
    assert reuse.in_force(req) is None


def test_log_probabilities_of_what_comes_after_the_compressed_text(world, thought):
    text = [*PROMPT, *output(thought), *range(50)]
    start = len(text) - 2
    req = world.new(text, return_logprob=True, logprob_start_len=start)
    assert req.logprob_start_len == start - (D - 2 * T - R)
    world.admit(req)
    assert len(req.computed) >= 2
    assert req.origin_input_ids[req.logprob_start_len :] == req.origin_input_ids_unpadded[start:]
    world.finish(req)
    for start in (0, len(PROMPT), len(PROMPT) + D - 1):
        req = world.new(text, return_logprob=True, logprob_start_len=start)
        assert req.rpc.taken is None
        assert req.rpc.not_reused == "log probabilities of what was compressed are asked for"
