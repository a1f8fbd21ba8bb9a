"""How often generated ids are not what the tokenizer makes of their text: `python -m eval.retokenized --out DIR ...`.

With `--base-url` and `--questions` a served model generates, and what it generated comes back in the forms of
`forms.py`. With `--texts` there is no model: texts are cut after tokens. Writes `texts.csv`, a row per text that came
back, `summary.csv`, `summary.md` and `conditions.json`; with a model also `samples.jsonl`, which holds what it
generated and is taken as it is if it is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval.accuracy.errors import EvalError
from eval.bench import machine
from eval.redundancy.texts import files as named_files
from eval.retokenized import forms, samples, summary, tokenizers
from eval.retokenized.forms import Row


def main(argv: list[str] | None = None) -> int:
    """0: measured and written; 1: not so, and the last line says why."""
    options = _parser().parse_args(argv)
    try:
        tokenizer = tokenizers.of(options.tokenizer)
        rows = list(_generated(options, tokenizer) if options.base_url else _cut(options, tokenizer))
    except (EvalError, OSError) as error:
        print(f"eval.retokenized: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    summary.write_rows(rows, options.out / "texts.csv")
    lines = summary.summary(rows)
    summary.write(lines, options.out / "summary.csv")
    text = summary.markdown(lines)
    (options.out / "summary.md").write_text(text, encoding="utf-8")
    (options.out / "conditions.json").write_text(json.dumps(_conditions(options), indent=1) + "\n", encoding="utf-8")
    print(text)
    return 0


def _generated(options: argparse.Namespace, tokenizer: tokenizers.Tokenizer) -> Iterable[Row]:
    if options.questions is None:
        raise EvalError("--base-url needs --questions, a file with one question a line")
    questions = options.questions.read_text(encoding="utf-8").splitlines()
    made = samples.generate(
        options.base_url, tokenizer, questions, options.temperatures, max(forms.LENGTHS), options.out
    )
    for sample in made:
        yield from forms.of_sample(sample, tokenizer, options.name)


def _cut(options: argparse.Namespace, tokenizer: tokenizers.Tokenizer) -> Iterable[Row]:
    if options.texts is None:
        raise EvalError("give --base-url and --questions, or --texts")
    for path in named_files(options.texts):
        yield from forms.of_text(path.read_text(encoding="utf-8"), tokenizer, options.name, path.stem, options.most)


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    read = [options.questions] if options.base_url else named_files(options.texts)
    tokenizer = options.tokenizer / "tokenizer.json" if options.tokenizer.is_dir() else options.tokenizer
    return {
        "name": options.name,
        "tokenizer_sha256": _sha256(tokenizer),
        "read": {path.name: _sha256(path) for path in read},
        **machine.conditions(),
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m eval.retokenized", description=__doc__.partition("\n")[0])
    made.add_argument("--name", required=True, help="what the results call the model or the tokenizer")
    made.add_argument(
        "--tokenizer", type=Path, required=True, help="a directory of Hugging Face's, or a .tiktoken file"
    )
    made.add_argument("--base-url", metavar="URL", help="a server of the model, with its tokenizer")
    made.add_argument("--questions", type=Path, metavar="FILE", help="one a line")
    made.add_argument("--temperatures", type=lambda text: [float(each) for each in text.split(",")], default="0,0.6,1")
    made.add_argument("--texts", nargs="+", metavar="FILE", help="plain text, UTF-8, to cut")
    made.add_argument("--most", type=int, default=1024, metavar="N", help="tokens of each text")
    made.add_argument("--out", type=Path, required=True, metavar="DIR")
    return made


if __name__ == "__main__":
    sys.exit(main())
