"""Questions, Chinese texts, and Qwen's tokenizer, from three packages.

    pip download --no-deps --ignore-requires-python champ-dataset==1.0.0 dashscope==2.0.2
    apt-get download debian-handbook=11.20220922
    python -m eval.retokenized.at_hand at-hand

reads them from the working directory and writes at-hand/questions.txt (every sixth of CHAMP's competition problems,
MIT, one a line), at-hand/chinese-N.txt (the longest pages of Debian's handbook, GPL-2+ or CC-BY-SA-3) and
at-hand/qwen.tiktoken (the ranks of Qwen's tokens, which Alibaba's client brings, Apache-2.0).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from eval.accuracy.errors import EvalError
from eval.redundancy.at_hand import of_wheel, prose, put, the, unpack

EVERY = 6
PAGES = 4


def main(argv: list[str]) -> int:
    try:
        if len(argv) != 1:
            raise EvalError("give the folder to write to: python -m eval.retokenized.at_hand DIR")
        write(Path(argv[0]), Path())
    except (EvalError, OSError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
        print(f"eval.retokenized.at_hand: {error}", file=sys.stderr)
        return 1
    return 0


def write(out: Path, packages: Path) -> None:
    """Raises EvalError, OSError, CalledProcessError, BadZipFile."""
    problems = of_wheel(packages, "champ_dataset-*.whl", "champ_dataset/dataset_files/v0.json")["problems"]
    out.mkdir(parents=True, exist_ok=True)
    questions = [" ".join(problems[name]["_text"].split()) for name in sorted(problems)[::EVERY]]
    (out / "questions.txt").write_text("".join(f"{question}\n" for question in questions), encoding="utf-8")
    with zipfile.ZipFile(the(packages, "dashscope-*.whl")) as wheel:
        (out / "qwen.tiktoken").write_bytes(wheel.read("dashscope/resources/qwen.tiktoken"))
    with tempfile.TemporaryDirectory() as folder:
        pages = unpack(packages, "debian-handbook_*.deb", folder) / "debian-handbook/html/zh-CN"
        texts = sorted((prose(page.read_text(encoding="utf-8")) for page in pages.glob("*.html")), key=len)
        put(out, {f"chinese-{number}": text for number, text in enumerate(texts[-PAGES:], 1)})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
