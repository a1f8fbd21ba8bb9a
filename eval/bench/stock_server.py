"""SGLang's own server, `python -m sglang.launch_server`, with none of this package's hooks.

On a machine without a GPU the stand-in for the kernels that SGLang lacks there is put in place, with the flags it
needs, exactly as sglang_rpc.launch_server does; elsewhere nothing is done at all.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    from sglang_rpc.startup.cpu import command_line

    # In a user's shell it would switch RPC on through SGLang's plugin entry point.
    os.environ.pop("SGLANG_RPC_CONFIG", None)
    sys.argv[1:] = command_line.complete(sys.argv[1:])
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
