"""The host memory that backups get, set aside at the start (memory/arena.py says why then)."""

import logging
from collections.abc import Sequence
from time import perf_counter

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.sglang.server import GroupCoordinator
from sglang_rpc.hooks import ranks
from sglang_rpc.memory.arena import CHUNK_BYTES
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.memory.host_memory import may_pin
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.types import KVLayer

logger = logging.getLogger(__name__)

#: Where no host backups are made.
OWN_WINDOWS = "where sliding windows have a KV pool of their own"
#: There SGLang makes them, on its own account.
DECODE_SERVER = "by RPC on a decode server"


def set_aside(
    config: RPCConfig,
    layers: Sequence[KVLayer],
    ring: QueryRing,
    group: GroupCoordinator | None,
    never: str = "",
    states: Sequence[torch.Tensor] = (),
) -> HostBackup:
    """Allocate what --rpc-host-backup-gb asks for; less, with a warning, where the host has less.

    Nothing, with a warning, if `never` says where no backups are made: OWN_WINDOWS. On a DECODE_SERVER nothing is
    missing. `states` are those of recurrent layers, which backups have too.

    Ranks of `group` get equally much, the least that any of them can have, and charge equally much for a KV entry and
    for the queries of `ring`, the most that any of them needs: they must refuse the same backups. They agree before
    anyone pins, for what one has pinned is missing for its neighbours, and again on what they got.
    """
    if never:
        if config.host_backup_gb and never != DECODE_SERVER:
            chosen = config.window_pool == "swa"
            logger.warning(
                "RPC: no host backups are made %s: a retracted request is prefilled again, uncompressed%s",
                *(never, "; leave --rpc-window-pool out" if chosen else ""),
            )
        return HostBackup(layers, 0)
    asked = int(config.host_backup_gb * 1e9)
    on_gpu = layers[0].keys.is_cuda
    # Unpinned memory is taken from the host as it is used, and can be swapped out.
    most = may_pin(max(1, torch.cuda.device_count())) if on_gpu else None
    limit = ranks.least(asked if most is None else min(asked, most), group)
    begun = perf_counter()
    backups = HostBackup(layers, limit, states=states)
    backups.lower(ranks.least(backups.limit, group))
    if group is not None:
        backups.charge(
            ranks.most(backups.entry_bytes, group), ranks.most(sum(held.nbytes for held in ring.of(0)), group)
        )
    if on_gpu and backups.limit:
        seconds = perf_counter() - begun
        logger.info("RPC: %.2f GB of host memory pinned for host backups, in %.1f s", backups.limit / 1e9, seconds)
    if warning := _too_little(asked, backups.limit):
        logger.warning("RPC: %s", warning)
    return backups


def _too_little(asked: int, limit: int) -> str:
    """What to say if `limit` bytes are set aside where `asked` were asked for; empty if these are all whole chunks."""
    again = "a retracted request without room there is prefilled again, uncompressed"
    if 0 < asked < CHUNK_BYTES:
        return (
            f"--rpc-host-backup-gb {asked / 1e9:g} is less than one chunk of {CHUNK_BYTES / 1e9:.4f} GB, so no KV is "
            f"kept: {again}; raise it, or say 0"
        )
    if asked - limit < CHUNK_BYTES:
        return ""
    return (
        f"host memory is short, here or on another rank: {limit / 1e9:.2f} GB are set aside for host backups, and "
        f"--rpc-host-backup-gb asks for {asked / 1e9:.2f} GB per rank; {again}; lower the flag, or free host memory"
    )
