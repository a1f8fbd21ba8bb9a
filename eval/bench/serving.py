"""`python -m eval.bench.serving --out DIR`: see --help, and eval/README.md for the commands behind each table."""

from __future__ import annotations

import signal
import sys

from tqdm import tqdm

from eval.bench import measure, options, plan, plots, shapes, summary, table
from eval.bench.errors import BenchError, ServerDied
from eval.bench.options import Options

#: Cores that others may use while a run is measured before its line says so; the system itself takes a few per cent.
DISTURBED = 0.15


def main(argv: list[str] | None = None) -> int:
    """0: everything planned was measured without errors. 1: not so, and the last lines say why. 130: Ctrl-C."""
    # A kill must end the servers as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asked = options.read(sys.argv[1:] if argv is None else argv)
        return _run(asked)
    except BenchError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nserving: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


def _run(asked: Options) -> int:
    results = asked.out / "results.csv"
    rows = table.read(results)
    if asked.report_only:
        return _report(asked)
    arms, workloads = asked.arms, asked.workloads
    columns = [
        {"arm": arm.name, "workload": workload.name, **asked.settings.columns(arm, workload)}
        for arm in arms
        for workload in workloads
    ]
    done = table.done(rows, asked.retry_errors)
    todo = plan.starts(arms, workloads, asked.repetitions, done)
    if asked.dry_run:
        print(plan.describe(todo, asked.rpc) if todo else "everything planned is measured already")
        return 0
    table.check_same_conditions(results, rows, columns)
    failures = _measure(asked, todo)
    status = _report(asked)
    for failure in failures:
        print(f"serving: {failure}", file=sys.stderr)
    return 1 if failures else status


def _measure(asked: Options, todo: list[plan.Start]) -> list[str]:
    """Runs what is to do; the sentences of servers that died, whose other workloads the same command runs again."""
    failures: list[str] = []
    shapes.write(asked.settings.model)
    total = sum(workload.total_output_tokens for start in todo for workload in start.workloads)
    with tqdm(total=total, unit="tok", unit_scale=True, smoothing=0.05, dynamic_ncols=True) as bar:
        for number, start in enumerate(todo, 1):
            label = f"start {number}/{len(todo)}, repetition {start.repetition}, pool {start.pool_tokens}, "
            bar.set_description(f"{label}{start.arm.name}")
            before = bar.n
            try:
                for row in measure.rows_of(start, asked.settings, bar.update):
                    table.append(asked.out / "results.csv", row)
                    bar.write(_line(row))
            except ServerDied as error:
                failures.append(str(error))
                bar.write(f"serving: {error}")
            # What a dead server left undone is not to be waited for.
            bar.update(sum(workload.total_output_tokens for workload in start.workloads) - (bar.n - before))
    return failures


def _line(row: dict) -> str:
    found = f"{row['arm']:<12} {row['workload']}  repetition {row['repetition']}: {row['tok_s'] or 0:.1f} tok/s, "
    found += f"{row['running_mean'] or 0:.1f} at once (peak {row['running_peak']}), {row['retractions']} retractions"
    others = row["other_cpu_s"] or 0
    if others > DISTURBED * row["wall_s"]:
        found += f" - DISTURBED: other processes used {others / row['wall_s']:.0%} of a core"
    return found + (f", {row['errors']} ERRORS: {row['first_error']}" if row["errors"] else "")


def _report(asked: Options) -> int:
    """Prints the table, writes summary.csv and the plots; 1 when a row has errors."""
    rows = table.read(asked.out / "results.csv")
    if not rows:
        print(f"{asked.out} holds no results")
        return 1
    found = summary.summarise(rows, asked.baseline)
    summary.write(asked.out / "summary.csv", found)
    plots.draw(rows, asked.baseline, asked.out)
    print(summary.as_text(found))
    print(f"\n{asked.out}: results.csv, summary.csv and plots")
    return 1 if any(not summary.is_good(row) for row in table.latest(rows).values()) else 0


if __name__ == "__main__":
    sys.exit(main())
