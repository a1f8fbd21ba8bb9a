"""results.csv: one row a (arm, workload, repetition), appended as soon as it is measured, and what resuming checks."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from eval.bench import metrics
from eval.bench.errors import BenchError
from eval.bench.plan import Key

KEY = ("arm", "workload", "repetition")
#: Differ from row to row by their nature.
CIRCUMSTANCES = ("date", "position", "start_s", "load_average", "server_pool_tokens", "query_ring_bytes")
#: Conditions of one arm on one workload.
OF_ROW = (
    *("base", "custom_params", "rpc_interval", "rpc_window", "rpc_ratio", "rpc_scope"),
    *("concurrency", "n", "prompt_tokens", "output_tokens", "samples", "rate", "pool_tokens", "pool_fraction"),
    *("offered_tokens", "temperature", "stream_interval", "known_lengths", "seed", "server"),
)
#: Conditions of the whole file; results under others belong in another one.
OF_FILE = (
    *("package_sha", "bench_sha", "sglang_rpc_version", "sglang_version", "torch_version", "transformers_version"),
    *("python_version", "os", "cpu", "cores", "memory_gb", "gpu", "env", "threads"),
    *("model", "model_sha", "weights", "dtype", "kv_bytes_per_token", "device"),
)
#: Said, not compared: package_sha and bench_sha say whether the code that matters is the same.
SAID = ("commit", "dirty")
COLUMNS = (*KEY, *CIRCUMSTANCES, *OF_ROW, *metrics.COLUMNS, *SAID, *OF_FILE)

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """Nothing if there is no file. Raises BenchError when its columns are not today's."""
    if not path.exists():
        return []
    # A row is one line; one that a kill cut short has no end.
    whole = path.read_text().rpartition("\n")[0]
    reader = csv.DictReader(whole.splitlines())
    rows = list(reader)
    if not whole:
        return []
    if tuple(reader.fieldnames or ()) != COLUMNS:
        different = sorted(set(reader.fieldnames or ()) ^ set(COLUMNS)) or ["their order"]
        raise BenchError(
            f"{path} was written by another version of the benchmark (columns that differ: {', '.join(different)}); "
            "choose another --out"
        )
    return rows


def append(path: Path, row: Mapping[str, Any]) -> None:
    """One row, on disk when this returns."""
    missing = set(COLUMNS) ^ set(row)
    if missing:
        raise ValueError(f"a row must have the columns of the table; these differ: {sorted(missing)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as old:
        old.seek(0)
        # What a kill cut short is taken away, or the next row would go on in its line.
        old.truncate(old.read().rfind(b"\n") + 1)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(as_text(row))
        file.flush()
        os.fsync(file.fileno())


def as_text(row: Mapping[str, Any]) -> Row:
    return {name: cell(value) for name, value in row.items()}


def cell(value: Any) -> str:
    """How a value stands in the file: nothing for None, six significant digits of a float, one line of a text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    return str(value).replace("\r", "").replace("\n", " | ")


def key(row: Mapping[str, str]) -> Key:
    return row["arm"], row["workload"], int(row["repetition"])


def latest(rows: Iterable[Row]) -> dict[Key, Row]:
    """A run that was repeated counts as it came out last."""
    return {key(row): row for row in rows}


def done(rows: Iterable[Row], retry_errors: bool) -> set[Key]:
    """What need not be measured again."""
    return {k for k, row in latest(rows).items() if not (retry_errors and row["errors"] != "0")}


def check_same_conditions(path: Path, rows: Iterable[Row], planned: Iterable[Mapping[str, Any]]) -> None:
    """`planned`: the columns OF_ROW and OF_FILE of each arm and workload. Raises BenchError at a difference."""
    wanted = {(row["arm"], row["workload"]): as_text(row) for row in planned}
    some = next(iter(wanted.values()), None)
    for row in rows:
        mine = wanted.get((row["arm"], row["workload"]))
        for names, now in ((OF_FILE, some), (OF_ROW, mine)):
            for name in names if now is not None else ():
                if row[name] != now[name]:
                    raise BenchError(
                        f"{path} holds results under other conditions: {name} was {row[name] or 'empty'} for "
                        f"{row['arm']} on {row['workload']} (repetition {row['repetition']}) and is "
                        f"{now[name] or 'empty'} now; choose another --out, or restore what it was"
                    )
