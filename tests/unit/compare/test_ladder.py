"""eval.compare.ladder: several comparisons in one table and one picture."""

import pytest

from eval.compare import ladder
from tests.unit.compare.folders import comparison, first


@pytest.fixture
def two(tmp_path):
    near = {
        ("full", 4): first(40),
        ("rpc", 4): first(36),
        ("random", 4): first(35),
        ("rpc", 8): first(20),
        ("random", 8): first(10),
    }
    far = {("full", 4): first(39), ("rpc", 4): first(0), ("random", 4): first(0), ("rpc", 8): first(5)}
    return [
        comparison(tmp_path / "near", "reasoner:near", near),
        comparison(tmp_path / "far", "reasoner:far", far, other_kv={"random": (113.0, 203.0)}),
    ]


def test_the_table(two, tmp_path, capsys):
    assert ladder.main(["--results", *map(str, two), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "ladder.md").read_text().splitlines() == [
        "| policy | near: 116 / 208 | near: 58 / 104 | far: 113 / 203 | far: 58 / 104 |",
        "|---|---|---|---|---|",
        "| full KV | 100.0 ± 2.0 | 100.0 ± 2.0 | 97.5 ± 2.0 | 97.5 ± 2.0 |",
        "| `rpc` | **90.0 ± 2.0** | **50.0 ± 2.0** | 0.0 ± 2.0 † | **12.5 ± 2.0** |",
        "| `random` | **87.5 ± 2.0** | 25.0 ± 2.0 | 0.0 ± 2.0 | not run |",
        "| setting | c = 4 | c = 8 | c = 4 | c = 8 |",
        "",
        ladder.LEGEND,
        "",
        "† Held more than 1 % more or fewer KV entries: `rpc` 116 / 208 (far, c = 4).",
    ]
    assert all((tmp_path / "out" / f"ladder.{suffix}").stat().st_size > 5000 for suffix in ("png", "svg"))


def test_who_is_behind_by_more_than_the_error_of_the_pair_is_not_bold(tmp_path):
    # 38 and 36 of 40: the same 36 problems; or others, then the difference has a larger error.
    best = first(38)
    marks = {("full", 4): first(40), ("peak", 4): best, ("rpc", 4): first(36), ("h2o", 4): [0, 0, 0, *first(36, 37)]}
    text = ladder.markdown([ladder.load(comparison(tmp_path / "near", "reasoner:near", marks))])
    assert "| `peak` | **95.0 ± 2.0** |" in text
    assert "| `rpc` | 90.0 ± 2.0 |" in text
    assert "| `h2o` | **90.0 ± 2.0** |" in text


def test_unknown_entries_are_told_and_never_bold(tmp_path):
    marks = {("full", 4): first(40), ("peak", 4): first(30), ("lightthinker", 4): first(40)}
    path = comparison(tmp_path / "near", "reasoner:near", marks, other_kv={"lightthinker": ("", "")})
    text = ladder.markdown([ladder.load(path)])
    assert "| policy | near: 116 / 208 |" in text
    assert "| `peak` | **75.0 ± 2.0** |" in text
    assert "| `lightthinker` | 100.0 ± 2.0 † |" in text
    assert "`lightthinker` not known (near, c = 4)" in text


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("no summary", "No such file"),
        ("no full", "no row of the full KV cache"),
        ("no policy", "no policy was measured"),
        ("two intervals", "several intervals"),
        ("cut short", "row 5 is not whole"),
        ("no number", "error of row 5 is 'x'"),
        ("no object", "comparison.json is damaged"),
        ("no text", "comparison.json is damaged"),
        ("no problems", "No such file"),
        ("no column", "has no column random-P64-R32-c8"),
        ("no mark", "problems.csv is damaged"),
    ],
)
def test_what_is_no_comparison_is_refused(two, tmp_path, capsys, damage, reason):
    path, problems = two[0] / "summary.csv", two[0] / "problems.csv"
    lines = path.read_text().splitlines()
    kept = {
        "no full": [lines[0], *lines[2:]],
        "no policy": lines[:2],
        "two intervals": [*lines, lines[2]],
        "cut short": [*lines[:-1], lines[-1].rpartition(",")[0]],
        "no number": [*lines[:-1], lines[-1].replace("0.02", "x")],
    }
    path.write_text("\n".join([*kept.get(damage, lines), ""]))
    if damage == "no summary":
        path.unlink()
    if damage == "no problems":
        problems.unlink()
    if damage == "no column":
        problems.write_text("".join(line.rpartition(",")[0] + "\n" for line in problems.read_text().splitlines()))
    if damage == "no mark":
        problems.write_text(problems.read_text().replace("p7,1", "p7,x"))
    if damage in ("no object", "no text"):
        (two[0] / "comparison.json").write_text({"no object": "[]", "no text": "{"}[damage])
    assert ladder.main(["--results", str(two[0]), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "--results" in told
    assert reason in told
