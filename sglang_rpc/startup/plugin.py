"""SGLang's plugin entry point (group `sglang.srt.plugins`). It does nothing unless `SGLANG_RPC_CONFIG` is set."""

import os

from sglang_rpc.config import CONFIG_ENV, RPCConfig
from sglang_rpc.errors import RPCError


def load() -> None:
    """Called by SGLang in every process.

    Raises SystemExit if RPC was asked for and cannot be installed: SGLang swallows every other exception here.
    """
    # In child processes too: a program may run its whole server in one.
    if not os.environ.get(CONFIG_ENV, "").strip():
        return
    try:
        RPCConfig.from_env()
        from sglang_rpc.startup.process import switch_on

        switch_on()
    except RPCError as error:
        raise SystemExit(f"sglang-rpc: {error}") from error
