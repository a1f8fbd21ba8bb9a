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


@pytest.mark.parametrize("damage", ["no summary", "no full", "no policy", "two intervals"])
def test_what_is_no_comparison_is_refused(two, tmp_path, capsys, damage):
    path = two[0] / "summary.csv"
    lines = path.read_text().splitlines()
    if damage == "no summary":
        path.unlink()
    elif damage == "no full":
        path.write_text("\n".join([lines[0], *lines[2:]]))
    elif damage == "two intervals":
        path.write_text("\n".join([*lines, lines[2]]))
    else:
        path.write_text("\n".join(lines[:2]))
    assert ladder.main(["--results", str(two[0]), "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and ("--results" in told)
