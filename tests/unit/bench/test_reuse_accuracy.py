"""What the rows of interrupted thoughts say."""

from __future__ import annotations

from eval.bench import reuse_accuracy
from eval.bench.reuse_accuracy import UNCUT, Row


def row(mode, problem, right, same=1, cut=0.5, **more):
    values = dict(prefilled=7, reused=0, compressions=3) | more
    return Row("rpc", 8.0, 0 if mode == UNCUT else cut, mode, problem, right, same, **values)


ROWS = [
    *(row(UNCUT, number, right) for number, right in enumerate([1, 1, 1, 0])),
    *(row("continue", number, right) for number, right in enumerate([1, 1, 1, 0])),
    *(
        row("share", number, right, same, reused=32)
        for number, (right, same) in enumerate([(1, 1), (0, 0), (1, 0), (1, 0)])
    ),
    *(row("off", number, 1, 0, prefilled=400) for number in range(4)),
]


def test_each_mode_is_compared_with_the_uncut_run_problem_by_problem():
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in reuse_accuracy.summary(ROWS).splitlines()
    ]
    assert [cells[3] for cells in lines[2:]] == [UNCUT, "continue", "share", "off"]
    assert [cells[4].split(" ±")[0] for cells in lines[2:]] == ["75.0%", "75.0%", "75.0%", "100.0%"]
    assert [cells[5] for cells in lines[2:]] == ["", "+0.0 ± 0.0 %", "+0.0 ± 40.8 %", "+25.0 ± 25.0 %"]
    assert [cells[7] for cells in lines[2:]] == ["", "100.0%", "25.0%", "0.0%"]
    assert [cells[8] for cells in lines[2:]] == ["7", "7", "7", "400"]


def test_rows_are_read_as_they_were_written(tmp_path):
    reuse_accuracy._write(ROWS, tmp_path)
    assert reuse_accuracy.read(tmp_path / "cuts.csv") == ROWS
    assert (tmp_path / "summary.md").read_text() == reuse_accuracy.summary(ROWS)
