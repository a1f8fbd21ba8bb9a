"""Real texts that package indexes have, for the contrast between reasoning and other writing: four packages to folders.

    pip download --no-deps --ignore-requires-python rt-seg==0.1.5 champ-dataset==1.0.0
    apt-get download debian-handbook=11.20220922 python3.11-doc=3.11.2-6+deb12u9
    python -m eval.redundancy.at_hand texts

reads them from the working directory and writes texts/reasoning (rt-seg, MIT: two traces of reasoning models, its
examples), texts/solutions (CHAMP, MIT: GPT-4 Turbo's worked solutions of competition problems, without thoughts),
texts/handbook (Debian's handbook, GPL-2+ or CC-BY-SA-3: prose, without its listings) and texts/howto (Python's HOWTOs,
PSF: prose and code). The texts stay where they are made: only numbers of them are committed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

from eval.accuracy.errors import EvalError

WRITER = "GPT-4 Turbo|0-Shot"


def main(argv: list[str]) -> int:
    try:
        if len(argv) != 1:
            raise EvalError("give the folder to write to: python -m eval.redundancy.at_hand DIR")
        _write(Path(argv[0]), Path())
    except (EvalError, OSError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
        print(f"eval.redundancy.at_hand: {error}", file=sys.stderr)
        return 1
    return 0


def _write(out: Path, packages: Path) -> None:
    traces = of_wheel(packages, "rt_seg-*.whl", "rt_segmentation/example_traces.json")
    put(out / "reasoning", traces)
    problems = of_wheel(packages, "champ_dataset-*.whl", "champ_dataset/dataset_files/v0.json")["problems"]
    put(out / "solutions", {name: solution(problem) for name, problem in problems.items()})
    with tempfile.TemporaryDirectory() as folder:
        handbook = unpack(packages, "debian-handbook_*.deb", folder) / "debian-handbook/html/en-US"
        put(out / "handbook", {page.stem: prose(page.read_text()) for page in handbook.glob("*.html")})
        howtos = unpack(packages, "python3.11-doc_*.deb", folder) / "python3.11/html/_sources/howto"
        put(out / "howto", {page.name.partition(".")[0]: page.read_text() for page in howtos.glob("*.rst.txt")})


def the(packages: Path, pattern: str) -> Path:
    found = sorted(packages.glob(pattern))
    if len(found) != 1:
        raise EvalError(
            f"{len(found)} files match {pattern} here, and one is needed; this module's description says which"
        )
    return found[0]


def of_wheel(packages: Path, pattern: str, member: str) -> dict:
    with zipfile.ZipFile(the(packages, pattern)) as wheel:
        return json.loads(wheel.read(member))


def unpack(packages: Path, pattern: str, folder: str) -> Path:
    subprocess.run(["dpkg-deb", "-x", str(the(packages, pattern)), folder], check=True)
    return Path(folder) / "usr/share/doc"


def put(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"{folder}: {len(texts)} texts")


def solution(problem: dict) -> str:
    messages = problem["conversations"][WRITER]["messages"]
    return "\n".join(m["text"] for m in messages if m["role"].startswith("Model.") and m["text"])


def prose(page: str) -> str:
    reader = _Prose()
    reader.feed(page)
    text = re.sub(r"[ \t\xa0]+", " ", "".join(reader.found))
    return re.sub(r"\n{2,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


class _Prose(HTMLParser):
    """The running text of a page: without listings and navigation."""

    LEFT_OUT = ("pre", "script", "style", "head")
    PARAGRAPHS = ("p", "h1", "h2", "h3", "li")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] = []  # elements being left out

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        navigation = tag == "ul" and "docnav" in (dict(attrs).get("class") or "").split()
        if tag in self.LEFT_OUT or navigation or (self._open and tag == self._open[-1]):
            self._open.append(tag)
        elif tag in self.PARAGRAPHS:
            self.found.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if self._open and tag == self._open[-1]:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open:
            self.found.append(data)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
