"""Carries RPC into the scheduler processes, and a refusal out of them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from sglang_rpc.contract.settings import config_of
from sglang_rpc.errors import IncompatibleSGLangError, RPCError

#: Exit code (EX_CONFIG) of a scheduler that RPC refuses to run in; its parent's error quotes it.
REFUSED = 78


def carry_into_schedulers(
    original: Callable, cls: Any, server_args: Any, port_args: Any, run_scheduler_process_func: Callable, **kwargs: Any
) -> Any:
    """AROUND Engine._launch_scheduler_processes: what the children run installs the hooks first."""
    if config_of(server_args) is not None:
        run_scheduler_process_func = partial(run_with_rpc, run_scheduler_process_func)
    return original(cls, server_args, port_args, run_scheduler_process_func, **kwargs)


def run_with_rpc(run_scheduler_process_func: Callable, *args: Any, **kwargs: Any) -> Any:
    """Runs in the child, which ends with the seam's name if one is missing."""
    _prepare_scheduler(*args, **kwargs)
    return run_scheduler_process_func(*args, **kwargs)


def ends_if_refused(function: Callable) -> Callable:
    """`function`, but an RPCError in it ends this process at once, with the sentence and no traceback.

    SGLang would answer the exception with a traceback and kill its parent.
    """

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except RPCError as error:
            print(f"sglang-rpc: {error}", file=sys.stderr, flush=True)
            os._exit(REFUSED)  # nothing has been served, and other threads must not keep the process

    return checked


@ends_if_refused
def _prepare_scheduler(server_args: Any, *args: Any, **kwargs: Any) -> None:
    from sglang_rpc.hooks.install import install

    if config_of(server_args) is None:
        raise IncompatibleSGLangError("the RPC configuration was lost between the server and its scheduler process")
    install()


def was_refused(error: RuntimeError) -> bool:
    """Whether this error of SGLang's start-up means that a scheduler ended with a refusal."""
    return f"(exit code: {REFUSED})" in str(error)
