"""The paper's setting on a GPU: `python -m eval.bench.gpu --out DIR [--shape qwen-7b|qwq-32b]`.

Dummy weights, 128 tokens in, 8K, 16K and 32K out, the same batch in an ample and in a tight pool: the serving
benchmark's preset `lengths`, with its options, output and resuming.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from eval.bench import arms, serving
from eval.bench.errors import BenchError

#: Of every server. More requests at once than SGLang captures graphs for by default would decode without them.
SERVER_FLAGS = {"--cuda-graph-max-bs-decode": "256"}


def arguments(given: list[str]) -> list[str]:
    """The serving benchmark's, what is `given` overriding what this file chooses. Raises BenchError."""
    chosen = ["--preset", "lengths", "--device", "cuda"]
    if not any(word.split("=")[0] in ("--shape", "--model-path") for word in given):
        chosen += ["--shape", "qwen-7b"]
    # What recording costs a step: RPC on, and no request long enough for a compression.
    chosen += ["--arm", "recording=--rpc-interval 1000000"]
    own = argparse.ArgumentParser(prog="python -m eval.bench.gpu", add_help=False, allow_abbrev=False)
    own.add_argument("--server-flags", default="")
    asked, others = own.parse_known_args(given)
    flags = server_flags(arms.split_flags(asked.server_flags, "--server-flags"))
    return [*chosen, *others, f"--server-flags={shlex.join(flags)}"]


def server_flags(given: tuple[str, ...]) -> tuple[str, ...]:
    """This file's flags that are not `given`, then those that are."""
    named = {word.partition("=")[0] for word in given}
    own = [word for name, value in SERVER_FLAGS.items() if name not in named for word in (name, value)]
    return (*own, *given)


def main() -> int:
    """The serving benchmark's exit status."""
    try:
        given = arguments(sys.argv[1:])
    except BenchError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 1
    return serving.main(given)


if __name__ == "__main__":
    sys.exit(main())
