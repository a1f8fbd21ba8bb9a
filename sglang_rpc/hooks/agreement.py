"""Whether every rank of a server, on whatever node, was started with the same RPC settings.

Ranks that decide differently would free other slots, and their collectives would not pair up: the server would hang.
So they compare what they were started with as soon as they know each other, before a model is loaded. Not by a
collective: a rank without RPC would not take part in it. Each rank writes to the store that they met at, and reads what
the others wrote.
"""

import contextlib
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Protocol

import torch

import sglang_rpc
from sglang_rpc.contract.refused import ends_if_refused
from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.sglang.server import ServerArgs
from sglang_rpc.contract.targets import AFTER, hook
from sglang_rpc.errors import ConfigError

#: How long a rank waits for the others to say their settings. All have just left a collective: they are seconds apart.
SECONDS = 30
#: What is there already is found within it.
SHORTEST = 0.1
#: How long the rank that has the store lets the others read what it refuses.
LAST_SECONDS = 5

_SETTINGS, _READ = "sglang_rpc/settings", "sglang_rpc/read"


class Store(Protocol):
    """Where the ranks of a process group meet: PyTorch's, of whatever kind."""

    def set(self, key: str, value: str) -> None:
        """For every rank to read."""

    def get(self, key: str) -> bytes:
        """Of a key that is there."""

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Raises RuntimeError where it takes longer, or the store is gone."""


@hook(
    AFTER,
    "sglang.srt.distributed.bootstrap.init_parallel_runtime",
    "ranks know each other and have not begun to load a model: on nodes with other settings the server would hang",
)
@ends_if_refused
def require_same_settings(_result: object, *, server_args: ServerArgs, **_kwargs: object) -> None:
    """AFTER bootstrap.init_parallel_runtime, once per scheduler process.

    Ends the process with a sentence if another rank has other settings, or says nothing for SECONDS.
    """
    config = config_of(server_args)
    if config is None or torch.distributed.get_world_size() == 1:
        return
    settings = f"sglang-rpc {sglang_rpc.__version__}, {config.to_json()}"
    store = torch.distributed.distributed_c10d._get_default_store()
    compare(store, torch.distributed.get_rank(), torch.distributed.get_world_size(), settings)


def compare(store: Store, rank: int, ranks: int, settings: str, seconds: float = SECONDS) -> None:
    """Write this rank's `settings` to the store and read the others'. Raises ConfigError if they are not the same."""
    store.set(f"{_SETTINGS}/{rank}", settings)
    until = time.monotonic() + seconds
    silent = [other for other in range(ranks) if not _wait(store, [f"{_SETTINGS}/{other}"], until - time.monotonic())]
    others = {other: _read(store, other) for other in range(ranks) if other not in silent}
    if not silent and set(others.values()) == {settings}:
        return
    _let_others_read(store, rank, others)
    if silent:
        raise ConfigError(
            f"{_ranks(silent)} of {ranks} said no RPC settings within {seconds:g} s of the start: start every node "
            "with sglang-rpc and the same --rpc-* flags, or every node with --disable-rpc",
            "config.ranks_silent",
        )
    different = {other: theirs for other, theirs in others.items() if theirs != settings}
    raise ConfigError(
        f"every rank must have the same RPC settings: {_ranks(different)} of {ranks} has "
        f"{next(iter(different.values()))}, and this one, rank {rank}, has {settings}; start every node with the same "
        "version of sglang-rpc and the same --rpc-* flags",
        "config.ranks_differ",
    )


def _wait(store: Store, keys: list[str], seconds: float) -> bool:
    """Whether the keys are there, or come in time."""
    try:
        store.wait(keys, timedelta(seconds=max(seconds, SHORTEST)))
    except RuntimeError:  # late, or the rank that has the store has ended
        return False
    return True


def _read(store: Store, rank: int) -> str:
    value: bytes = store.get(f"{_SETTINGS}/{rank}")
    return value.decode()


def _let_others_read(store: Store, rank: int, speaking: Iterable[int]) -> None:
    """The store is rank 0's, and ends with it: it waits until the others have read what they refuse."""
    with contextlib.suppress(RuntimeError):
        store.set(f"{_READ}/{rank}", "")
        if rank == 0:
            _wait(store, [f"{_READ}/{other}" for other in speaking], LAST_SECONDS)


def _ranks(ranks: Iterable[int]) -> str:
    numbers = [str(rank) for rank in ranks]
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
