"""A request that took over KV and is retracted: with a backup, without, and before its first token."""

from __future__ import annotations

import pytest

from sglang_rpc.hooks import reuse
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.runtime.pages import ceil_align
from sglang_rpc.types import KVLayer
from tests.unit.reuse.life import PROMPT, output, retract, whole


def backups_of(world, limit: int) -> HostBackup:
    layers = [KVLayer(k, v, k.dtype, 1.0) for k, v in zip(world.pool.k_buffer, world.pool.v_buffer, strict=True)]
    return HostBackup(layers, limit)


class TestRetracted:
    @pytest.fixture
    def req(self, world, thought):
        return world.admit(world.new([*PROMPT, *output(thought), 9]))

    def test_without_a_backup_all_of_it_is_prefilled_from_real_ids(self, world, thought, req):
        """As every request without a backup; first it must be known whether the pool has room for that."""
        text = [*PROMPT, *output(thought), 9]
        world.decode(req, 20)
        assert retract(world, req, backups_of(world, 0))
        assert list(req.origin_input_ids) == text
        assert (req.rpc.totals.reused, req.rpc.taken) == (0, None)
        assert req.rpc.not_reused == "retracted without a KV backup, it was prefilled again"
        reuse.take_over(world.runtime, req)  # in the queue again
        world.admit(req)
        assert req.computed == [*text, *output(req)][whole(world, len(PROMPT)) :]
        assert world.held(req)[0][-1] == len(text) + 19
        world.finish(req)

    def test_with_a_backup_it_keeps_what_it_took_over(self, world, thought, req):
        world.decode(req, 20)
        before, taken = world.held(req), reuse.in_force(req)
        backups = backups_of(world, 2**24)
        assert retract(world, req, backups)
        assert reuse.in_force(req) is taken
        world.evict()
        req.init_next_round_input(world.tree)
        assert reuse.in_force(req) is taken, "what it took over is in its backup"
        backup = req.rpc.hooks.saved.backup
        slots = world.allocator.alloc(ceil_align(backup.tokens, world.page))
        backups.load(backup, 0, slots[: backup.tokens])
        entries = [
            b[slots[: backup.tokens], 0, 0].long().tolist() for b in (*world.pool.k_buffer, *world.pool.v_buffer)
        ]
        assert entries == [layer[: backup.tokens] for layer in before]
        assert backup.tokens == len(taken.key) + 19  # but for the newest token's entry
        world.allocator.free(slots)

    def test_before_its_first_token_it_comes_back_as_it_came(self, world, thought, req):
        taken = reuse.in_force(req)
        assert retract(world, req, backups_of(world, 0))
        assert reuse.in_force(req) is taken
        world.admit(req)
        assert len(req.computed) <= 1 + world.page
        world.finish(req)

    def test_and_as_its_text_if_its_entries_have_gone_meanwhile(self, world, thought, req):
        retract(world, req, backups_of(world, 0))
        world.evict()
        world.admit(req)
        assert req.computed == [*PROMPT, *output(thought), 9]
        world.finish(req)
