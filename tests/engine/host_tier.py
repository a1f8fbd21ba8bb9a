"""HiCache on a CPU: SGLang's own tree, controller and host pool, with a stand-in for what needs a GPU.

The stand-in is of three things: host memory is not pinned, streams and events are in order at once, and the one copy
that `--hicache-io-backend direct` uses is indexing. So what is shown is which KV goes where, not when.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.engine import spy

#: Arguments of an engine, by field name; host memory for four times the pool.
ARGUMENTS = dict(
    enable_hierarchical_cache=True,
    hicache_ratio=4.0,
    hicache_io_backend="direct",
    hicache_mem_layout="layer_first",
)
#: KV entries that SGLang copied, and requests restored though the tree had more of their prompt in host memory.
_counted = {"to_host": 0, "to_device": 0, "restored_beside_a_host_hit": 0}


def run_scheduler_process(*args: Any, **kwargs: Any) -> Any:
    """As `spy`'s, with a host tier; `collective_rpc("host_tier")` writes the counts."""
    from sglang.srt.managers import scheduler

    if not torch.cuda.is_available():
        install()
    count()
    scheduler.Scheduler.host_tier = _write_counts
    return spy.run_scheduler_process(*args, **kwargs)


class Event:
    """Everything before it is done when it is recorded."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self, stream: object = None) -> None:
        pass

    def wait(self, stream: object = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        return 0.0


class Stream:
    """Work is done when it is given."""

    def wait_stream(self, stream: object) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def synchronize(self) -> None:
        pass


@contextlib.contextmanager
def _on(stream: Stream) -> Iterator[None]:
    yield


def copy(
    src_layers: Sequence[torch.Tensor],
    dst_layers: Sequence[torch.Tensor],
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    page_size: int,
) -> None:
    """sgl_kernel's `transfer_kv_direct`: entries from slots to slots, layer by layer."""
    for source, target in zip(src_layers, dst_layers, strict=True):
        target[dst_indices] = source[src_indices]


def install(patch: Callable[[object, str, object], None] = setattr) -> None:
    """Let every tree of this process have a host tier. Not undone by itself: an engine's process is its own."""
    from sglang.srt.managers import cache_controller
    from sglang.srt.mem_cache import l2_transfer
    from sglang.srt.mem_cache.pool_host import base, common, mha

    device = SimpleNamespace(Event=Event, Stream=Stream, stream=_on, current_stream=Stream, __name__="stand-in")
    patch(cache_controller, "device_module", device)
    patch(l2_transfer, "device_module", device)
    patch(common, "_cuda_host_register", lambda *_: None)
    patch(mha, "transfer_kv_direct", copy)
    patch(base, "HICACHE_HOST_MEMORY_RESERVE_BYTES", 0)  # SGLang leaves 10 GB free


def count() -> None:
    """Count what SGLang's controller hands to its transfers, and what RPC restores."""
    from sglang.srt.mem_cache.l2_transfer import L2TransferEngine

    from sglang_rpc.hooks import resume

    to_host, to_device = L2TransferEngine.submit_device_to_host, L2TransferEngine.submit_host_to_device

    def counted_to_host(self: Any, transfers: list[Any]) -> Any:
        _counted["to_host"] += len(transfers[0].device_indices)
        return to_host(self, transfers)

    def counted_to_device(self: Any, transfers: list[Any], **kwargs: Any) -> Any:
        _counted["to_device"] += len(transfers[0].device_indices)
        return to_device(self, transfers, **kwargs)

    L2TransferEngine.submit_device_to_host = counted_to_host
    L2TransferEngine.submit_host_to_device = counted_to_device
    restore = resume.restore

    def counted_restore(runtime: Any, req: Any, *args: Any) -> bool:
        hit = req.host_hit_length > 0
        restored: bool = restore(runtime, req, *args)
        _counted["restored_beside_a_host_hit"] += hit and restored
        return restored

    resume.restore = counted_restore


def _write_counts(self: Any, path: str) -> None:
    Path(path).write_text(json.dumps(_counted))
