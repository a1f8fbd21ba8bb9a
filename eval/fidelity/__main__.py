"""What a compressed KV cache changes in predictions: `python -m eval.fidelity --model-path DIR --texts FILES`.

A server generates each text token by token, forced, with its full KV cache and under every policy, ratio and interval.
All selections are the server's own. Writes `texts.csv` (a row a text and arm), `summary.csv`, `summary.md` and
`conditions.json`. The same command goes on where it was stopped, with more policies and ratios too. `logits/` holds
what the full KV cache predicted; it can be deleted once no more arms are wanted.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.accuracy.__main__ import positive
from eval.accuracy.errors import EvalError
from eval.bench.errors import BenchError
from eval.compare import table, written
from eval.compare.arms import FULL, Arm, arms, label
from eval.fidelity import rows, summary, texts
from eval.fidelity.measuring import Measuring
from eval.fidelity.rows import Row
from eval.redundancy.texts import files as named_files
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.resolve import find_policy


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    # A server has a session of its own: whoever ends this ends it too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed: list[str] = []
    found: dict[Arm, list[Row]] = {}
    try:
        every = _arms(options)
        flags = _flags(options.server_flags)
        model = texts.model(options.model_path, "--trust-remote-code" in flags)
        read = texts.read_all(named_files(options.texts), model, options.prompt_tokens, options.tokens)
        _claim(options, read, flags)
        _room(options, len(read), model.vocabulary)
        measuring = Measuring(options.model_path, flags, read, options.out, options.start_seconds)
        failed += measuring.measure(every)
        samples = table.complete(every, options.out, [text.name for text in read], 1)
        found = {arm: rows.of_samples(each) for arm, each in samples.items()}
        if found:
            table.write_conditions(samples, options.out)
            _report(found, options)
    except (EvalError, BenchError, OSError) as error:
        failed.append(str(error))
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with {options.out}", file=sys.stderr)
        return 130
    for sentence in failed:
        print(f"eval.fidelity: {sentence}", file=sys.stderr)
    return 1 if failed else 0


def _report(found: dict[Arm, list[Row]], options: argparse.Namespace) -> None:
    out, baseline = options.out, options.baseline or ("rpc" if "rpc" in options.policies else options.policies[0])
    made = summary.summary(found, baseline)
    summary.write(summary.plain(row for each in found.values() for row in each), rows.NAMES, out / "texts.csv")
    summary.write(made, summary.COLUMNS, out / "summary.csv")
    text = summary.markdown(made, found, baseline)
    (out / "summary.md").write_text(text, encoding="utf-8")
    print(text)


def _arms(options: argparse.Namespace) -> list[Arm]:
    """Full first. Raises EvalError for one that is sure to fail."""
    for policy in options.policies:
        try:
            if policy == FULL or find_policy(policy) is None:
                raise EvalError(f"--policies must score candidates (full KV is always there), and {policy!r} does not")
        except ConfigError as error:
            raise EvalError(str(error)) from error
    if options.baseline is not None and options.baseline not in options.policies:
        raise EvalError(f"--baseline must be of --policies, {', '.join(options.policies)}; got {options.baseline!r}")
    called = [label(policy) for policy in options.policies]
    if len(set(called)) < len(called):
        raise EvalError(f"two of --policies would be called the same in {options.out}, of {', '.join(called)}")
    made = arms(options.policies, options.intervals, options.window, options.ratios, options.min_kept)
    for arm in made[1:]:
        try:
            RPCConfig(interval=arm.interval, window=arm.window, ratio=arm.ratio, min_kept=arm.min_kept)
        except ConfigError as error:
            raise EvalError(str(error)) from error
        if rows.compressions(arm, options.tokens) == 0:
            raise EvalError(
                f"--tokens {options.tokens} are too few for interval {arm.interval} and window {arm.window}: the first "
                f"compression shows from token {rows.first_compressed(arm) + 1} on; give more"
            )
    return made


def _flags(given: str | None) -> list[str]:
    try:
        return shlex.split(given or "")
    except ValueError as error:
        raise EvalError(f"--server-flags can't be read as a command line: {error}") from error


def _claim(options: argparse.Namespace, read: Sequence[texts.Text], flags: list[str]) -> None:
    """Begin the directory, or find that it is this measurement's. Raises EvalError."""
    common = {
        "model_path": str(options.model_path),
        "server_flags": flags,
        "prompt_tokens": options.prompt_tokens,
        "tokens": options.tokens,
        "texts": {text.name: text.sha256 for text in read},
    }
    written.claim(options.out / "fidelity.json", common, "measurement")


def _room(options: argparse.Namespace, count: int, vocabulary: int) -> None:
    """Raises EvalError if the disk cannot hold what the full KV cache predicts."""
    wanted = 4 * count * options.tokens * vocabulary
    there = sum(path.stat().st_size for path in (options.out / "logits").glob("*.f32"))
    free = shutil.disk_usage(options.out).free
    if wanted - there > free:
        raise EvalError(
            f"--out {options.out} needs {wanted / 1e9:.1f} GB for the logits of {count} texts of {options.tokens} "
            f"tokens, and {free / 1e9:.1f} GB are free; give another --out, fewer texts, or fewer --tokens"
        )


def _parser() -> argparse.ArgumentParser:
    def several(kind: type) -> Any:
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m eval.fidelity", description=__doc__.partition("\n")[0])
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--texts", nargs="+", required=True, metavar="FILE", help="plain text, UTF-8")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--policies", type=several(str), default="rpc,peak,random,streaming")
    parser.add_argument("--baseline", metavar="POLICY", help="what the others are compared with (rpc, or the first)")
    parser.add_argument("--intervals", type=several(int), default="128", metavar="P,...")
    parser.add_argument("--window", type=positive, default=32, metavar="R")
    parser.add_argument("--ratios", type=several(float), default="4", metavar="C,...")
    parser.add_argument("--min-kept", type=several(int), default="0", metavar="F,...", help="floors of the budget")
    parser.add_argument("--prompt-tokens", type=positive, default=64, metavar="N", help="of each text, never evicted")
    parser.add_argument("--tokens", type=positive, default=928, metavar="N", help="of each text, after its prompt")
    parser.add_argument("--start-seconds", type=positive, default=600, metavar="S", help="a server may take to start")
    parser.add_argument("--server-flags", help="more flags of the server, one text")
    return parser


if __name__ == "__main__":
    sys.exit(main())
