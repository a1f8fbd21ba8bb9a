"""How much host memory backups get: what the flag says, less where the host or another rank has less."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.hooks import backup_memory
from sglang_rpc.memory.arena import CHUNK_BYTES
from sglang_rpc.memory.host_memory import available_bytes, may_pin
from tests.unit.host_backup.pool import pool

GB = 10**9


def host(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       32000000 kB\nMemFree: 1 kB\nMemAvailable:   10000000 kB\n"}
V2 = {
    "sys/fs/cgroup/memory.max": "8000000000\n",
    "sys/fs/cgroup/memory.current": "7000000000\n",
    "sys/fs/cgroup/memory.stat": "anon 900000000\nactive_file 2000000000\ninactive_file 4000000000\n",
}
V1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000000000\n",
    "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_active_file 500\ntotal_inactive_file 1000\n",
}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, None),  # not Linux
        (MEMINFO, 10_240_000_000),
        ({**MEMINFO, **V2}, 7_000_000_000),  # page cache can be taken back
        ({**MEMINFO, **V2, "sys/fs/cgroup/memory.max": "max\n"}, 10_240_000_000),
        ({**MEMINFO, **V2, "sys/fs/cgroup/memory.max": "900000000000\n"}, 10_240_000_000),
        ({**MEMINFO, **V2, "sys/fs/cgroup/memory.max": "500000000\n"}, 0),
        ({**MEMINFO, **V1}, 1_000_001_500),
        ({**MEMINFO, **V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096)}, 10_240_000_000),
    ],
)
def test_what_is_available(tmp_path, files, available):
    assert available_bytes(host(tmp_path, files)) == available
    assert may_pin(4, tmp_path) == (None if available is None else int(available * 0.8) // 4)


def test_this_host_says_what_it_has():
    assert 0 < available_bytes() < 2**50


class Start:
    """A start on a GPU, as far as memory is concerned; other ranks give `others`, one in each round."""

    def __init__(self, monkeypatch, may_pin: int | None = 10**15, others: tuple[int, ...] = ()):
        self.did: list[tuple] = []
        self.others = list(others)
        monkeypatch.setattr(backup_memory, "may_pin", self.may_pin)
        monkeypatch.setattr(backup_memory, "HostBackup", self.allocate)
        monkeypatch.setattr(torch.distributed, "all_gather_object", self.gather)
        self._may_pin = may_pin
        self.group = SimpleNamespace(world_size=2, cpu_group="ranks") if others else None

    def may_pin(self, processes: int) -> int | None:
        assert processes >= 1
        return self._may_pin

    def allocate(self, layers: object, limit: int, states: object) -> SimpleNamespace:
        self.did.append(("allocate", limit))
        backups = SimpleNamespace(limit=limit // CHUNK_BYTES * CHUNK_BYTES)
        backups.lower = lambda limit: setattr(backups, "limit", limit // CHUNK_BYTES * CHUNK_BYTES)
        backups.entry_bytes = 100
        backups.charge = lambda *sizes: self.did.append(("charge", *sizes))
        return backups

    def gather(self, everywhere: list[int], mine: int, group: str) -> None:
        assert group == "ranks"
        self.did.append(("gather", mine))
        everywhere[:] = [mine, self.others.pop(0)]

    def run(self, gb: float, is_cuda: bool = True) -> int:
        layers = [SimpleNamespace(keys=SimpleNamespace(is_cuda=is_cuda))]
        ring = SimpleNamespace(of=lambda slot: (torch.zeros(20, dtype=torch.uint8), torch.zeros(10, dtype=torch.uint8)))
        return backup_memory.set_aside(RPCConfig(host_backup_gb=gb), layers, ring, self.group).limit


def whole(size: float) -> int:
    return int(size) // CHUNK_BYTES * CHUNK_BYTES


def test_as_much_as_the_flag_says(monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        assert Start(monkeypatch).run(4) == whole(4 * GB) > 3.99 * GB
    (message,) = caplog.messages
    assert message.startswith("RPC: 4.00 GB of host memory pinned for host backups, in ")


def test_less_where_the_host_has_less(monkeypatch, caplog):
    assert Start(monkeypatch, may_pin=GB).run(4) == whole(GB)
    assert caplog.messages == [
        "RPC: host memory is short, here or on another rank: 1.00 GB are set aside for host backups, and "
        "--rpc-host-backup-gb asks for 4.00 GB per rank; a retracted request without room there is prefilled again, "
        "uncompressed; lower the flag, or free host memory"
    ]


@pytest.mark.parametrize("is_cuda", [True, False])
def test_where_nothing_is_known_or_pinned_the_flag_is_believed(monkeypatch, caplog, is_cuda):
    assert Start(monkeypatch, may_pin=None if is_cuda else 1).run(4, is_cuda) == whole(4 * GB)
    assert not caplog.records


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ((2 * GB, 2 * GB), 2 * GB),  # one that has less
        ((5 * GB, 3 * GB), 3 * GB),  # one that got less than it could have had
        ((5 * GB, 4 * GB), 4 * GB),
    ],
)
def test_every_rank_has_as_much_as_the_least(monkeypatch, others, expected):
    start = Start(monkeypatch, others=(*others, 120, 20))  # it has more layers, but a smaller ring
    assert start.run(4) == whole(expected)
    # All say what they can have before any of them pins.
    most = min(4 * GB, others[0])
    assert start.did == [
        *[("gather", 4 * GB), ("allocate", most), ("gather", whole(most))],
        *[("gather", 100), ("gather", 30), ("charge", 120, 30)],
    ]


@pytest.mark.parametrize("gb", [1e-9, 0.002])
def test_less_than_a_chunk_is_said(monkeypatch, caplog, gb):
    assert Start(monkeypatch).run(gb) == 0
    (message,) = caplog.messages
    assert message.startswith(f"RPC: --rpc-host-backup-gb {gb:g} is less than one chunk of 0.0021 GB, so no KV is kept")


def test_none_was_asked_for(monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        assert Start(monkeypatch).run(0) == 0
    assert not caplog.records


def test_without_a_gpu_it_is_allocated_all_the_same(caplog):
    backups = backup_memory.set_aside(RPCConfig(host_backup_gb=1), pool(), None, None)
    assert (backups.limit, backups.used) == (whole(GB), 0)
    assert backups.save(torch.arange(20), 4, "key", None) is not None
    assert backups.used == 2 * CHUNK_BYTES
    assert not caplog.records
