"""Carries RPC into the scheduler processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sglang_rpc.errors import RPCError
from sglang_rpc.seams.settings import config_of


def carry_into_schedulers(
    original: Callable, cls: Any, server_args: Any, port_args: Any, run_scheduler_process_func: Callable, **kwargs: Any
) -> Any:
    """AROUND Engine._launch_scheduler_processes: what the children run installs the hooks first."""
    if config_of(server_args) is not None:
        run_scheduler_process_func = partial(run_with_rpc, run_scheduler_process_func)
    return original(cls, server_args, port_args, run_scheduler_process_func, **kwargs)


def run_with_rpc(run_scheduler_process_func: Callable, *args: Any, **kwargs: Any) -> Any:
    """Runs in the child. Raises SystemExit with the seam's name if one is missing."""
    from sglang_rpc.seams.install import install

    try:
        install()
    except RPCError as error:
        raise SystemExit(f"sglang-rpc: {error}") from error
    return run_scheduler_process_func(*args, **kwargs)
