"""The app that each of several HTTP workers imports (`--tokenizer-worker-num`): SGLang's own, with RPC's hooks on.

A worker is a new process in which SGLang loads no plugins. It takes the arguments from shared memory, and the
configuration with them.
"""

from sglang_rpc.startup.process import switch_on

switch_on()

from sglang.srt.entrypoints.http_server import app  # noqa: E402

__all__ = ["app"]
