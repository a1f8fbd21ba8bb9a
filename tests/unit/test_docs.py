"""The documentation: its links lead somewhere, its pictures are what their script draws, its sentences are short."""

import re
from collections import Counter
from pathlib import Path

import pytest

from docs import figures
from sglang_rpc import RPCConfig
from sglang_rpc.policy.budget import Budget

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(p for d in ("docs", "eval", "examples", "patches") for p in (ROOT / d).rglob("*.md")),
    ]
    if path.name != "paper.md"
)
#: Pages that a program writes; their words stand in the code.
GENERATED = {
    *("docs/architectures.md", "docs/limits.md", "docs/reference.md", "docs/hooks.md"),
    "eval/results/cpu-reasoner-ladder/ladder.md",
}
MOST_WORDS = 25
README_LINES = 150


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    """The page with the content of code blocks and spans left out; the blocks' lines stay, empty."""
    text = re.sub(r"^( *)```.*?^ *```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]+`", "code", text)


def links(text: str) -> list[str]:
    """Targets of links and pictures that lead into the repository."""
    found = re.findall(r"\]\(([^()\s]+)\)", without_code(text))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """Names of the page's headings, as GitHub makes them; the second of a name gets `-1`."""
    seen: Counter[str] = Counter()
    result = set()
    for heading in re.findall(
        r"^#+ (.+)$", re.sub(r"^( *)```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    ):
        plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")
        result.add(plain if not seen[plain] else f"{plain}-{seen[plain]}")
        seen[plain] += 1
    return result


def broken_links(page: Path, root: Path = ROOT) -> list[str]:
    broken = []
    for target in links(page.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(root):
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file.read_text("utf-8")):
            broken.append(f"{target}: no such heading")
    return broken


def sentences(text: str) -> list[str]:
    """The prose of a page, sentence by sentence: without code, tables, headings and pictures; a link is its text."""
    prose = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", without_code(text))
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    blocks: list[list[str]] = [[]]
    for line in prose.splitlines():
        if not line.strip() or re.match(r"\s*(\||#|>)", line):
            blocks.append([])
        elif re.match(r"\s*([-*]|\d+\.) ", line):
            blocks.append([re.sub(r"^\s*([-*]|\d+\.) ", "", line)])
        else:
            blocks[-1].append(line.strip())
    text = "\n".join(" ".join(block) for block in blocks)
    return [part.strip() for part in re.split(r"(?<=[.?!:])[)*]*\s+|\n", text) if part.strip()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_that_exist(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", [page for page in PAGES if name(page) not in GENERATED], ids=name)
def test_sentences_are_short(page):
    counted = {sentence: len(sentence.split()) for sentence in sentences(page.read_text("utf-8"))}
    assert {sentence: n for sentence, n in counted.items() if n > MOST_WORDS} == {}


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES


def test_a_broken_link_is_seen(tmp_path):
    other = tmp_path / "other.md"
    other.write_text("# One `--flag` more\n\n## Twice\n## Twice\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) ![b](gone.svg) [c](other.md#one---flag-more) [d](other.md#gone) [e](#here) [f](../page.md)\n"
        "[g](https://example.org/x) `[h](code.md)` [i](other.md#twice-1) [j](other.md#no-heading)\n"
    )
    assert broken_links(page, tmp_path) == [
        "gone.svg: no such file",
        "other.md#gone: no such heading",
        "#here: no such heading",
        "../page.md: no such file",
        "other.md#no-heading: no such heading",
    ]


def test_a_sentence_ends_at_its_stop_and_at_its_paragraph():
    text = "# A heading\n\nOne two. Three\nfour: [five six](x.md)\n\n- seven\n- eight `nine ten`\n\n"
    text += "```\ncode. code\n```\n| a | b. |\n"
    assert sentences(text) == ["One two.", "Three four:", "five six", "seven", "eight code"]


def test_pictures_are_what_their_script_draws():
    for file, draw in figures.FIGURES.items():
        assert (ROOT / "docs" / file).read_text("utf-8") == draw().svg(), f"{file}: run python docs/figures.py"


def test_the_worked_example_is_the_budgets_arithmetic():
    """docs/operations.md: how many requests of a length fit a pool of 5 GB, with prompts of 200 tokens."""
    page = (ROOT / "docs" / "operations.md").read_text("utf-8")
    slots = int(5e9) // (2 * 28 * 4 * 128 * 2)
    assert f"has {slots:,} slots" in page
    settings = [RPCConfig(), RPCConfig(interval=1024), RPCConfig(interval=1024, ratio=8)]
    for tokens in (8192, 16384, 32768):
        peaks = [tokens, *(Budget(c.interval, c.window, c.budget_step).peak(tokens) for c in settings)]
        fit = " | ".join(str(slots // (200 + peak)) for peak in peaks)
        assert f"| {tokens:,} | {fit} |" in page
    assert f"32768 generated tokens need {Budget(4096, 32, 1024).peak(32768)} entries" in page


def test_the_five_flags_of_the_front_page_have_these_defaults():
    rows = re.findall(r"^\| `--rpc-([a-z-]+)[^`]*` \| (\w+) \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 5
    defaults = RPCConfig().as_dict()
    assert {flag: str(defaults[flag.replace("-", "_")]) for flag, _ in rows} == dict(rows)
