"""Who takes over nothing of whom, and that no virtual id reaches the model."""

from __future__ import annotations

import pytest

from sglang_rpc.hooks import reuse
from sglang_rpc.runtime.aliases import FIRST_VIRTUAL
from tests.unit.reuse.life import PROMPT, TAIL, D, output, whole


class TestApart:
    """Equal ids, and yet nothing is taken over."""

    @pytest.mark.parametrize(
        "other",
        [
            {"cache_salt": "other"},
            {"extra_key": "other"},
            {"lora_id": "adapter"},
            {"rpc": {"interval": 32}},
            {"rpc": {"window": 4}},
            {"rpc": {"ratio": 2}},
            {"rpc": {"min_kept": 5}},
            {"rpc": {"enabled": False}},
            {"rpc": {"reuse": "off"}},
            {"custom_logit_processor": "code"},
        ],
        ids=str,
    )
    def test_from_others(self, world, thought, other):
        text = [*PROMPT, *output(thought), 9]
        req = world.new(text, **other)
        assert list(req.origin_input_ids) == text
        world.admit(req)
        assert not req.rpc.totals.reused
        assert world.held(req)[0][-1] == len(text) - 1
        matched = 0 if other.keys() & {"cache_salt", "extra_key", "lora_id"} else whole(world, len(PROMPT))
        assert req.computed == text[matched:]
        world.finish(req)
        same = world.new(text)
        assert same.rpc.taken is not None

    def test_equal_ones_meet(self, world):
        for own in ({"cache_salt": "a"}, {"extra_key": "a"}, {"lora_id": "a"}, {"rpc": {"ratio": 2, "interval": 64}}):
            thought = world.think(PROMPT, D + TAIL, **own)
            req = world.admit(world.new([*PROMPT, *output(thought), 9], **own))
            assert req.rpc.totals.reused == D
            world.finish(req)
            world.tree.reset()
            world.allocator.clear()

    def test_who_leaves_nothing(self, world):
        for own in ({"rpc": {"reuse": "off"}}, {"rpc": {"enabled": False}}):
            thought = world.think(PROMPT, D + TAIL, **own)
            assert len(world.runtime.aliases) == 0
            req = world.new([*PROMPT, *output(thought), 9])
            assert req.rpc.taken is None


def test_a_virtual_id_is_never_computed(world, thought):
    """The last of the checks: as if the others had failed."""
    req = world.new([*PROMPT, *output(thought), 9])
    world.evict()
    req.rpc.hooks.saved = object()  # which keeps `real_ids_if_evicted` from looking
    with pytest.raises(RuntimeError, match="virtual id"):
        world.admit(req)
    world.allocator.clear()
    world.tree.reset()


@pytest.mark.parametrize("own", [{}, {"lora_id": "adapter"}], ids=str)
def test_a_request_cannot_name_compressed_kv_itself(world, thought, own):
    """Nor if it says that it takes nothing over: the tree would match what it names."""
    from sglang_rpc.errors import ConfigError

    own |= {"rpc": {"reuse": "off"}}
    text = PROMPT + output(thought)
    reuse.refuse_foreign_ids(world.new(text, vocab_size=5000, **own))
    key = world.new([*text, 9]).origin_input_ids
    for foreign in (-1, FIRST_VIRTUAL, max(key)):
        with pytest.raises(ConfigError, match=f"input_ids must be from 0 to .*, got {foreign} "):
            reuse.refuse_foreign_ids(world.new([*text, foreign], vocab_size=5000, **own))


def test_nor_any_other_id_that_is_no_token(world):
    """Of plain text: an image has ids beyond the vocabulary, and an adapter may."""
    from sglang_rpc.errors import ConfigError

    with pytest.raises(ConfigError, match="input_ids must be from 0 to 999, got 1000 "):
        reuse.refuse_foreign_ids(world.new([999, 1000], vocab_size=1000))
    reuse.refuse_foreign_ids(world.new([999, 1000], vocab_size=1000, lora_id="adapter"))
    image = world.new([999, 1000], vocab_size=1000)
    image.multimodal_inputs = object()
    reuse.refuse_foreign_ids(image)
    reuse.refuse_foreign_ids(world.new([], vocab_size=1000))
