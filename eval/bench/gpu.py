"""The paper's setting on a GPU: `python -m eval.bench.gpu --out DIR [--shape qwen-7b|qwq-32b]`.

Dummy weights, 128 tokens in, 8K, 16K and 32K out, the same batch in an ample and in a tight pool: the serving
benchmark's preset `lengths`, with its options, output and resuming.
"""

from __future__ import annotations

import sys

from eval.bench import serving


def arguments(given: list[str]) -> list[str]:
    """The serving benchmark's, what is `given` overriding what this file chooses."""
    chosen = ["--preset", "lengths", "--device", "cuda"]
    if not any(word.split("=")[0] in ("--shape", "--model-path") for word in given):
        chosen += ["--shape", "qwen-7b"]
    # What recording costs a step: RPC on, and no request long enough for a compression.
    chosen += ["--arm", "recording=--rpc-interval 1000000"]
    # More requests at once than SGLang captures graphs for by default would decode without them.
    return [*chosen, "--server-flags=--cuda-graph-max-bs-decode 256", *given]


if __name__ == "__main__":
    sys.exit(serving.main(arguments(sys.argv[1:])))
