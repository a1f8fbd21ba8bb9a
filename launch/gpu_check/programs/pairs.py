"""The serving benchmark, and what it measured as lines for the summary: `pairs.py OUT FLAGS...`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from eval.bench import serving
from launch.gpu_check.programs import say

COUNTERS = 160  #: characters of the server's counters


def main(out: Path, flags: list[str]) -> int:
    """The benchmark's exit status."""
    try:
        return serving.main(["--out", str(out), *flags])
    finally:
        # Also what an interrupted one had measured.
        for line in lines(out / "results.csv"):
            say(line)


def lines(results: Path) -> list[str]:
    """One per run."""
    if not results.is_file():
        return []
    with results.open(newline="") as file:
        return [_line(row) for row in csv.DictReader(file)]


def _line(row: dict[str, str]) -> str:
    first = f"{row['arm']} {row['workload']}: {row['tok_s']:.7} tok/s"
    at_once = f"at once {row['running_mean']:.5} (peak {row['running_peak']})"
    counted = f"retractions {row['retractions']}, late {row['late'] or 0}, errors {row['errors']} "
    start = f"({row['start_s']:.5} s to start)"
    return f"{first}, {at_once}, {counted}{start} {row.get('counters', '')[:COUNTERS]}".rstrip()


if __name__ == "__main__":  # needed: a benchmark's children import this
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
