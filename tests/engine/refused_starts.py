"""Starts the server again and again with a command line that must be refused; prints one JSON line each.

One process for all of them: importing SGLang takes longer than refusing.
"""

from __future__ import annotations

import json
import sys

from sglang_rpc import launch_server


def main(model: str, command_lines: list[str]) -> None:
    for line in command_lines:
        argv = ["--model-path", model, "--skip-tokenizer-init", "--log-level", "error", *line.split()]
        try:
            launch_server.main(argv)
            code: object = "it started"
        except SystemExit as error:
            code = error.code
        print(json.dumps([line, code]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
