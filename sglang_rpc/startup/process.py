"""Switches RPC on in a process, and carries it into the scheduler processes."""

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from sglang_rpc import hooks
from sglang_rpc.contract import settings
from sglang_rpc.contract.refusals.server import APP_VARIABLE, HTTP_APP
from sglang_rpc.contract.refused import ends_if_refused
from sglang_rpc.contract.settings import config_of, options_of
from sglang_rpc.contract.sglang.server import ServerArgs, TokenizerManager
from sglang_rpc.contract.targets import AROUND, BEFORE, REUSE, SERVING, SPECULATIVE, TEXTS, Hook, hook, hooks_in
from sglang_rpc.errors import IncompatibleSGLangError
from sglang_rpc.hooks.install import install
from sglang_rpc.startup import cpu
from sglang_rpc.startup.cpu import drafts, idle_ranks, transfers, window_reads


def switch_on() -> None:
    """Put the hooks of a server with RPC on, all or none. Raises IncompatibleSGLangError or ConfigError."""
    install(found for found in declared_hooks() if found.when == SERVING)


def declared_hooks() -> tuple[Hook, ...]:
    """Every hook but the command line's. Imports the modules that hold them."""
    names = [f"{hooks.__name__}.{module.name}" for module in pkgutil.iter_modules(hooks.__path__)]
    own = (settings, sys.modules[__name__], idle_ranks, window_reads, transfers, drafts)
    return hooks_in(*own, *map(importlib.import_module, names))


@hook(
    AROUND,
    "sglang.srt.entrypoints.engine.Engine._launch_scheduler_processes",
    "scheduler processes install the hooks before anything else, whatever SGLANG_PLUGINS lists",
)
def carry_into_schedulers(
    original: Callable[..., Any],
    cls: Any,
    server_args: ServerArgs,
    port_args: Any,
    run_scheduler_process_func: Callable[..., Any],
    **kwargs: Any,
) -> Any:
    """AROUND Engine._launch_scheduler_processes: what the children run installs the hooks first, and so does what
    HTTP workers will import. Sets SGLANG_HTTP_SERVER_APP_PATH."""
    if cpu.STAND_IN in sys.path and config_of(server_args) is None and options_of(server_args) is not None:
        run_scheduler_process_func = partial(run_prefill_on_cpu, run_scheduler_process_func)
    if config_of(server_args) is not None:
        run_scheduler_process_func = partial(run_with_rpc, run_scheduler_process_func)
        # Workers import the app that is named here; another that a user has named was refused before.
        os.environ[APP_VARIABLE] = HTTP_APP
    return original(cls, server_args, port_args, run_scheduler_process_func, **kwargs)


def run_with_rpc(run_scheduler_process_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs in the child, which ends with the target's name if one is missing."""
    _prepare_scheduler(*args, **kwargs)
    return run_scheduler_process_func(*args, **kwargs)


def run_prefill_on_cpu(run_scheduler_process_func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Runs in the child of a prefill server, which has no other hook."""
    install(hooks_in(transfers))
    return run_scheduler_process_func(*args, **kwargs)


@hook(
    BEFORE,
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.init_tokenizer_and_processor",
    "every process that tokenizes passes here once, HTTP workers too, before it serves",
)
def know_texts(manager: TokenizerManager) -> None:
    """BEFORE TokenizerManager.init_tokenizer_and_processor: puts the hooks of --rpc-reuse-text on, if asked for."""
    config = config_of(manager.server_args)
    if config is not None and config.reuse_text:
        install(found for found in declared_hooks() if found.when == TEXTS)


@ends_if_refused
def _prepare_scheduler(server_args: ServerArgs, *args: Any, **kwargs: Any) -> None:
    config = config_of(server_args)
    if config is None:
        raise IncompatibleSGLangError(
            "the RPC configuration was lost between the server and its scheduler process", "incompatible.config_lost"
        )
    switch_on()
    if config.reuse != "off":
        install(found for found in declared_hooks() if found.when == REUSE)
    if server_args.speculative_algorithm is not None:
        install(found for found in declared_hooks() if found.when == SPECULATIVE)
