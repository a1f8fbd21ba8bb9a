"""Run by test_surface.py in a process of its own, since it puts hooks on SGLang: reads a JSON list of command lines
from standard input, and writes what becomes of each, one JSON object a line, behind "RESULT "."""

import contextlib
import io
import json
import os
import sys

from sglang_rpc import launch_server
from sglang_rpc.config import CONFIG_ENV
from sglang_rpc.contract.settings import config_of
from sglang_rpc.startup.cpu import command_line

served = []
launch_server._serve = served.append  # no server is started, whatever happens


def outcome(argv: list[str], env: str | None) -> dict:
    os.environ.pop(CONFIG_ENV, None)
    if env is not None:
        os.environ[CONFIG_ENV] = env
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            config = config_of(launch_server._parse(command_line.complete(argv)))
        return {"config": None if config is None else config.as_dict(), "env_after": os.environ.get(CONFIG_ENV)}
    except SystemExit as error:
        return {"exit": error.code, "stderr": errors.getvalue()}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


def main_outcome(argv: list[str]) -> dict:
    """As a user meets it: how `main` ends, with what it says last."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            launch_server.main(argv)
    except SystemExit as error:
        return {"exit": error.code, "stderr": errors.getvalue(), "served": len(served)}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"served": len(served)}


for case in json.load(sys.stdin):
    result = main_outcome(case["argv"]) if case["main"] else outcome(case["argv"], case["env"])
    print("RESULT " + json.dumps(result), flush=True)
