"""A session's turn that replaces one that still runs on KV taken over."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest

from sglang_rpc.hooks import turns
from sglang_rpc.runtime.aliases import FIRST_VIRTUAL
from tests.unit.reuse.life import PROMPT, output


@pytest.mark.parametrize("drop", [False, True])
def test_it_is_made_of_real_ids(world, thought, drop):
    from sglang.srt.session.session_controller import Session

    text = [*PROMPT, *output(thought), 9]
    running = world.admit(world.new(text))
    world.decode(running, 5)
    shown = running.origin_input_ids
    assert max(shown) >= FIRST_VIRTUAL
    asked = SimpleNamespace(drop_previous_output=drop, offset=None, replace=True)
    turn = SimpleNamespace(input_ids=array("q", [3, 4]))
    ids, unpadded = turns.of_real_ids(Session._concat_token_arrays, running, turn, asked)
    assert list(ids) == list(unpadded) == [*text, *([] if drop else output(running)), 3, 4]
    assert running.origin_input_ids is shown
    world.finish(running)
