"""What the ranks of a server tell each other, and what each makes of it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import ranks
from tests.fakes.models import GroupCoordinator


class Together:
    """Ranks in threads, whose all-gathers meet."""

    def __init__(self, monkeypatch, stages: list[int]):
        self.stages = stages
        self.barrier, self.told = threading.Barrier(len(stages)), {}
        monkeypatch.setattr(torch.distributed, "all_gather_object", self.gather)
        monkeypatch.setattr(ranks, "pipeline", lambda: SimpleNamespace(pp_rank=stages[self.rank]))

    @property
    def rank(self) -> int:
        return int(threading.current_thread().name)

    def gather(self, everywhere: list, mine: object, group: object) -> None:
        assert group == "cpu"
        self.told[self.rank] = mine
        self.barrier.wait(20)
        everywhere[:] = [self.told[rank] for rank in range(len(self.stages))]
        self.barrier.wait(20)

    def run(self, function) -> list[object]:
        """What `function` of a rank and its group returns or raises on each rank."""
        results: dict[int, object] = {}

        def one(rank: int) -> None:
            try:
                results[rank] = function(rank, GroupCoordinator(rank, len(self.stages), "cpu"))
            except ConfigError as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,), name=str(rank)) for rank in range(len(self.stages))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return [results[rank] for rank in range(len(self.stages))]


def test_all_have_the_least_or_the_most(monkeypatch):
    together = Together(monkeypatch, [0, 0, 1])
    assert together.run(lambda rank, group: ranks.least((7, 5, 9)[rank], group)) == [5, 5, 5]
    assert together.run(lambda rank, group: ranks.most((7, 5, 9)[rank], group)) == [9, 9, 9]


def test_layers_are_numbered_through_the_stages_however_many_ranks_each_has(monkeypatch):
    layers = {0: 3, 1: 2, 2: 4}
    together = Together(monkeypatch, [0, 0, 1, 1, 2, 2])
    assert together.run(lambda rank, group: ranks.on_earlier_stages(layers[rank // 2], group)) == [0, 0, 3, 3, 5, 5]


def test_ranks_that_differ_in_slots_or_scoring_say_so(monkeypatch):
    together = Together(monkeypatch, [0, 1])
    assert together.run(lambda rank, group: ranks.require_same(group, ("{}", 8, "triton"))) == [None, None]
    for said in together.run(lambda rank, group: ranks.require_same(group, ("{}", 8 + rank, "triton"))):
        assert "got [('{}', 8, 'triton'), ('{}', 9, 'triton')]" in str(said)


def test_one_rank_asks_nobody():
    assert ranks.least(7, None) == ranks.most(7, None) == 7
    assert ranks.on_earlier_stages(7, None) == 0
    ranks.require_same(None, ("{}", 8, "triton"))


@pytest.mark.parametrize(("size", "several"), [(1, False), (2, True)])
def test_a_group_of_one_is_none(size, several):
    assert (ranks._of_several(SimpleNamespace(world_size=size)) is not None) == several
