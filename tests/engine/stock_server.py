"""Stock `python -m sglang.launch_server` on a machine without a GPU: only the CPU stand-in is put in place."""

import runpy

from sglang_rpc.startup import cpu

if __name__ == "__main__":
    cpu.prepare("cpu")
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
