"""SGLang's plugin entry point (group `sglang.srt.plugins`). It does nothing unless `SGLANG_RPC_CONFIG` is set."""

from __future__ import annotations

import multiprocessing
import os

from sglang_rpc.config import CONFIG_ENV, RPCConfig
from sglang_rpc.errors import RPCError


def load() -> None:
    """Called by SGLang in every process.

    Raises:
        SystemExit: RPC was asked for and cannot be installed. (SGLang swallows every other exception here.)
    """
    # Scheduler processes are hooked by `process.carry_into_schedulers`; other children need no hook.
    if not os.environ.get(CONFIG_ENV, "").strip() or multiprocessing.parent_process() is not None:
        return
    try:
        RPCConfig.from_env()
        from sglang_rpc.seams.install import install

        install()
    except RPCError as error:
        raise SystemExit(f"sglang-rpc: {error}") from error
