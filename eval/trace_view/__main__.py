"""`python -m eval.trace_view FILE`: one trace of `--rpc-trace` as a page for the browser."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval.accuracy.errors import EvalError
from eval.trace_view.page import page
from eval.trace_view.reader import read
from eval.trace_view.tokens import load_tokenizer


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eval.trace_view",
        description="Show what each layer of a compressed request held, and when, as one HTML page.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a file of a server's --rpc-trace DIR")
    parser.add_argument("--out", type=Path, metavar="PAGE.html", help="the page (FILE with .html)")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="a local folder, or a name already downloaded (the trace's)"
    )
    asked = parser.parse_args(argv)
    try:
        if asked.file.is_dir():
            raise EvalError(f"{asked.file} is a folder; give one of the files that --rpc-trace wrote")
        print(write(asked.file, asked.out or asked.file.with_suffix(".html"), asked.tokenizer))
    except (EvalError, OSError) as error:
        print(f"eval.trace_view: {error}", file=sys.stderr)
        return 1
    return 0


def write(file: Path, out: Path, tokenizer_path: str | None) -> str:
    """Write the page; returns a sentence on it. Raises EvalError or OSError."""
    if out.resolve() == file.resolve():
        raise EvalError(f"--out {out} is the trace itself; name another file")
    trace = read(file)
    path = tokenizer_path or trace.header.get("tokenizer")
    tokenizer = load_tokenizer(path) if isinstance(path, str) else None
    if tokenizer is None and tokenizer_path is not None:
        raise EvalError(f"--tokenizer {tokenizer_path} holds no tokenizer on this machine, and none is downloaded")
    text = page(trace, tokenizer)
    out.write_text(text, encoding="utf-8")
    note = "" if tokenizer is not None else f" of token ids: no tokenizer at {path!r}, --tokenizer PATH names one"
    return f"{out}: {len(trace.output)} tokens, {len(trace.compressions)} compressions, {len(text) / 1e6:.1f} MB{note}"


if __name__ == "__main__":
    sys.exit(main())
