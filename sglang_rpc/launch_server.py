"""`python -m sglang_rpc.launch_server --model-path ...`: SGLang's server with Reasoning Path Compression on."""

import os
import sys

from sglang_rpc.config import CONFIG_ENV
from sglang_rpc.contract.sglang.server import ServerArgs
from sglang_rpc.errors import RPCError
from sglang_rpc.startup.cpu import command_line


def main(argv: list[str] | None = None) -> None:
    """Takes every SGLang flag and the --rpc-* flags. Raises SystemExit(1) with one sentence on a wrong one."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        _serve(_parse(command_line.complete(argv)))
    except RPCError as error:
        raise SystemExit(f"sglang-rpc: {error}") from error


def _parse(argv: list[str]) -> ServerArgs:
    from sglang_rpc.contract.targets import hooks_in
    from sglang_rpc.hooks.install import install
    from sglang_rpc.startup import flags

    # The plugin entry point must not switch on what --disable-rpc switches off; read_flags reads the variable itself.
    asked = os.environ.pop(CONFIG_ENV, None)
    from sglang.srt.plugins import load_plugins

    load_plugins()
    if asked is not None:
        os.environ[CONFIG_ENV] = asked
    install(hooks_in(flags))
    from sglang.srt.server_args import prepare_server_args

    server_args: ServerArgs = prepare_server_args(argv)
    os.environ.pop(CONFIG_ENV, None)  # from here on the configuration travels with the arguments
    return server_args


def _serve(server_args: ServerArgs) -> None:
    from sglang.launch_server import run_server
    from sglang.srt.utils import kill_process_tree

    from sglang_rpc.contract.refused import was_refused
    from sglang_rpc.contract.settings import config_of

    if config_of(server_args) is not None:
        from sglang_rpc.startup.process import switch_on

        switch_on()
    try:
        run_server(server_args)
    except RuntimeError as error:
        if not was_refused(error):
            raise
        # The scheduler process has said why. What SGLang has started in this one would keep it from ending.
        kill_process_tree(os.getpid(), include_parent=False)
        sys.stdout.flush()
        os._exit(1)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main()
