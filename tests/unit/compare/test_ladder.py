"""eval.compare.ladder: several comparisons in one table and one picture."""

import csv
import json

import pytest

from eval.compare import ladder


def comparison(path, task, accuracies):
    """`accuracies`: (policy, ratio) -> accuracy."""
    path.mkdir()
    (path / "comparison.json").write_text(json.dumps({"task": task}))
    names = ["policy", "ratio", "accuracy", "error", "accuracy_low", "accuracy_high", "problems"]
    with (path / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "peak_share", "held_share"])
        for (policy, ratio), value in accuracies.items():
            writer.writerow([policy, ratio, value, 0.02, max(0, value - 0.04), min(1, value + 0.04), 300, 0.43, 0.375])
    return path


@pytest.fixture
def two(tmp_path):
    near = {("full", 4): 1, ("rpc", 4): 0.9, ("random", 4): 0.9, ("rpc", 8): 0.5, ("random", 8): 0.25}
    far = {("full", 4): 0.99, ("rpc", 4): 0, ("random", 4): 0, ("rpc", 8): 0.125}
    return [
        comparison(tmp_path / "near", "reasoner:near", near),
        comparison(tmp_path / "far", "reasoner:far", far),
    ]


def test_the_table(two, tmp_path, capsys):
    assert ladder.main(["--results", *map(str, two), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "ladder.md").read_text().splitlines() == [
        "| policy | near, c = 4 | near, c = 8 | far, c = 4 | far, c = 8 |",
        "|---|---|---|---|---|",
        "| full KV | 100.0 ± 2.0 | 100.0 ± 2.0 | 99.0 ± 2.0 | 99.0 ± 2.0 |",
        "| `rpc` | **90.0 ± 2.0** | **50.0 ± 2.0** | 0.0 ± 2.0 | **12.5 ± 2.0** |",
        "| `random` | **90.0 ± 2.0** | 25.0 ± 2.0 | 0.0 ± 2.0 | not run |",
        "| KV held, most / end | 43% / 38% | 43% / 38% | 43% / 38% | 43% / 38% |",
    ]
    assert all((tmp_path / "out" / f"ladder.{suffix}").stat().st_size > 5000 for suffix in ("png", "svg"))


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
    ],
)
def test_what_is_no_comparison_is_refused(two, tmp_path, capsys, damage, reason):
    path = two[0] / "summary.csv"
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
    if damage in ("no object", "no text"):
        (two[0] / "comparison.json").write_text({"no object": "[]", "no text": "{"}[damage])
    assert ladder.main(["--results", str(two[0]), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "--results" in told
    assert reason in told
