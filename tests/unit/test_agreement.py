"""Ranks that were started with other settings, or without RPC, learn it before they hang."""

import threading
import time

import pytest
import torch

from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import agreement

SOON = 0.5


def compare(settings: dict[int, str], ranks: int, starts: dict[int, float] | None = None) -> dict[int, str | None]:
    """What each of these ranks has to say, of `ranks`; those that `settings` lacks run no RPC. None: it goes on."""
    store, said = torch.distributed.HashStore(), {}

    def run(rank: int) -> None:
        time.sleep((starts or {}).get(rank, 0))
        try:
            agreement.compare(store, rank, ranks, settings[rank], SOON)
            said[rank] = None
        except ConfigError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in settings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return said


def test_ranks_with_the_same_settings_go_on():
    assert compare(dict.fromkeys(range(3), "same"), 3) == {0: None, 1: None, 2: None}


def test_a_rank_that_comes_later_is_waited_for():
    assert compare({0: "same", 1: "same"}, 2, {1: SOON / 2}) == {0: None, 1: None}


def test_every_rank_names_one_that_differs():
    said = compare({0: "P=64", 1: "P=128", 2: "P=64"}, 3)
    for rank, other in ((0, 1), (1, 0), (2, 1)):
        mine, theirs = ("P=128", "P=64") if rank == 1 else ("P=64", "P=128")
        ranks = "ranks 0, 2" if rank == 1 else f"rank {other}"
        assert f"{ranks} of 3 ha" in said[rank]
        assert f"{theirs}, and this one, rank {rank}, has {mine}" in said[rank]
        assert said[rank].endswith("[config.ranks_differ]")


def test_ranks_without_rpc_are_named_by_all_others_and_waited_for_together():
    before = time.monotonic()
    said = compare({0: "same", 2: "same"}, 4)
    assert time.monotonic() - before < 2 * SOON + agreement.SHORTEST
    for rank in (0, 2):
        assert said[rank].startswith("ranks 1, 3 of 4 said no RPC settings within 0.5 s of the start: ")
        assert said[rank].endswith("[config.ranks_silent]")


def test_the_rank_that_has_the_store_ends_after_the_others_have_read(monkeypatch):
    store, order = torch.distributed.HashStore(), []
    read = agreement._read

    def slowly(store, rank):
        if rank == 0 and threading.current_thread().name == "1":
            time.sleep(SOON)
            order.append("rank 1 has read")
        return read(store, rank)

    monkeypatch.setattr(agreement, "_read", slowly)

    def run(rank: int) -> None:
        with pytest.raises(ConfigError):
            agreement.compare(store, rank, 2, f"P={rank + 64}", SOON)
        order.append(f"rank {rank} ends")

    threads = [threading.Thread(target=run, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert order[0] == "rank 1 has read"
    assert sorted(order[1:]) == ["rank 0 ends", "rank 1 ends"]
