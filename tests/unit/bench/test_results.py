"""The benchmark's tables: CSV round trip, resuming, pairs and medians, counters, percentiles, plots."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from eval.bench import counters, load, metrics, plots, statistics, summary, table
from eval.bench.client import Sample
from eval.bench.errors import BenchError
from eval.bench.traffic import Run


def row(arm: str = "stock", repetition: int = 1, workload: str = "w", **changes) -> dict:
    values = dict.fromkeys(table.COLUMNS, "")
    numbers = {"tok_s": 100.0, "errors": 0, "running_mean": 4.0, "running_peak": 5, "concurrency": 16, "n": 1}
    numbers |= {"pool_fraction": 0.25, "pool_tokens": 5248, "rate": "closed", "prompt_tokens": 32}
    numbers |= {"output_tokens": 1280, "ttft_p50_s": 1.0, "ttft_p99_s": 2.0, "itl_p50_s": 0.01, "itl_p99_s": 0.02}
    numbers |= {"retractions": 2, "cores": 2, "cpu": "a CPU", "commit": "abc", "dirty": "no", "model": "shape:tiny"}
    return {**values, **numbers, "arm": arm, "repetition": repetition, "workload": workload, **changes}


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "deep" / "results.csv"
    first = row(first_error='a "quoted", and\nbroken line', tok_s=123.456789, kv_bytes_mean=None, counters='{"a": 1}')
    table.append(path, first)
    table.append(path, row("rpc", tok_s=1234567.8))
    back = table.read(path)
    assert [table.key(r) for r in back] == [("stock", "w", 1), ("rpc", "w", 1)]
    assert back[0]["first_error"] == 'a "quoted", and | broken line'
    assert back[0]["tok_s"] == "123.457"
    assert back[0]["kv_bytes_mean"] == ""
    assert back[0]["counters"] == '{"a": 1}'
    assert back[1]["tok_s"] == "1234568"
    assert len(path.read_text().splitlines()) == 3


def test_a_row_cut_short_by_a_kill_is_measured_again(tmp_path):
    path = tmp_path / "results.csv"
    table.append(path, row())
    table.append(path, row("rpc"))
    text = path.read_text()
    path.write_text(text[: len(text) - 40])
    assert table.done(table.read(path), retry_errors=False) == {("stock", "w", 1)}
    table.append(path, row("rpc"))
    assert path.read_text() == text


def test_a_file_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("arm,colour\nstock,red\n")
    with pytest.raises(BenchError, match=r"another version of the benchmark .*colour.*choose another --out"):
        table.read(path)


def test_a_row_must_have_every_column(tmp_path):
    with pytest.raises(ValueError, match="tok_s"):
        table.append(tmp_path / "r.csv", {k: v for k, v in row().items() if k != "tok_s"})


def test_errors_are_done_unless_they_are_to_be_retried(tmp_path):
    rows = [table.as_text(row()), table.as_text(row("rpc", errors=3))]
    assert len(table.done(rows, retry_errors=False)) == 2
    assert table.done(rows, retry_errors=True) == {("stock", "w", 1)}
    again = [*rows, table.as_text(row("rpc"))]
    assert len(table.done(again, retry_errors=True)) == 2
    assert table.latest(again)[("rpc", "w", 1)]["errors"] == "0"


@pytest.mark.parametrize(("column", "value"), [("sglang_version", "9"), ("samples", "1"), ("server", "x --y")])
def test_changed_conditions_are_named(tmp_path, column, value):
    path = tmp_path / "results.csv"
    old = [table.as_text(row())]
    table.check_same_conditions(path, old, [row()])
    with pytest.raises(BenchError, match=f"{column} was empty for stock on w .* is {value} now; choose another --out"):
        table.check_same_conditions(path, old, [row(**{column: value})])


def test_other_arms_may_differ_in_their_own_conditions_and_not_in_the_files(tmp_path):
    old = [table.as_text(row())]
    table.check_same_conditions(tmp_path, old, [row("rpc", server="other flags", commit="another")])
    with pytest.raises(BenchError, match="package_sha"):
        table.check_same_conditions(tmp_path, old, [row("rpc", package_sha="1234")])


def test_ratios_are_taken_pair_by_pair():
    """Medians of each arm alone would give 2.0; the pairs say 3."""
    rates = [(100, 300), (200, 220), (50, 200)]
    rows = [row("stock", i, tok_s=float(a)) for i, (a, _) in enumerate(rates, 1)]
    rows += [row("rpc", i, tok_s=float(b)) for i, (_, b) in enumerate(rates, 1)]
    stock, rpc = summary.summarise([table.as_text(r) for r in rows], "stock")
    assert rpc["tok_s_ratio"] == pytest.approx(3.0)
    assert rpc["pairs"] == 3
    assert rpc["tok_s_ratio_low"] == pytest.approx(1.1)
    assert rpc["tok_s_ratio_high"] == pytest.approx(4.0)
    assert rpc["tok_s"] == 220
    assert stock["tok_s_ratio"] == 1


def test_a_pair_with_an_error_is_dropped_and_counted():
    rows = [row("stock", 1), row("stock", 2), row("rpc", 1, tok_s=200.0), row("rpc", 2, tok_s=900.0, errors=1)]
    rpc = summary.summarise([table.as_text(r) for r in rows], "stock")[1]
    assert (rpc["pairs"], rpc["pairs_dropped"], rpc["errors"], rpc["repetitions"]) == (1, 1, 1, 2)
    assert rpc["tok_s_ratio"] == 2
    assert rpc["tok_s"] == 200


def test_without_the_baseline_there_is_no_ratio():
    (rpc,) = summary.summarise([table.as_text(row("rpc"))], "stock")
    assert rpc["pairs"] == 0
    assert rpc["tok_s_ratio"] is None
    assert rpc["tok_s"] == 100
    assert "-" in summary.as_text([rpc])


def test_a_missing_number_and_a_zero_make_no_ratio():
    rows = [row("stock", cached_tokens=0, ttft_p50_s=None), row("rpc", cached_tokens=5, ttft_p50_s=1.0)]
    rpc = summary.summarise([table.as_text(r) for r in rows], "stock")[1]
    assert rpc["cached_tokens_ratio"] is None
    assert rpc["ttft_p50_s_ratio"] is None


def test_summary_csv_has_its_columns(tmp_path):
    result = summary.summarise([table.as_text(row())], "stock")
    summary.write(tmp_path / "summary.csv", result)
    with (tmp_path / "summary.csv").open(newline="") as file:
        (back,) = csv.DictReader(file)
    assert list(back) == summary.columns()
    assert back["tok_s_ratio"] == "1"
    assert set(summary.MEDIANS) | set(summary.RATIOS) <= set(metrics.COLUMNS)


def test_plots_are_drawn_from_rows_alone(tmp_path):
    rows = [
        table.as_text(row(arm, repetition, f"w{c}{f}", tok_s=100.0 * c / f, concurrency=c, pool_fraction=f))
        for arm in ("stock", "rpc", "mine")
        for repetition in (1, 2)
        for c in (8, 16)
        for f in (0.25, 1.25)
    ]
    written = plots.draw(rows, "stock", tmp_path)
    assert sorted({path.stem for path in written}) == sorted(plots._PLOTS)
    assert {path.suffix for path in written} == {".png", ".svg"}
    assert all(p.stat().st_size > 2000 for p in written)
    svg = (tmp_path / "throughput_ratio_by_pool.svg").read_text()
    assert "ratio to stock" in svg
    assert "shape:tiny" in svg
    assert "mine" in svg
    assert plots.draw(rows, "stock", tmp_path)
    assert (tmp_path / "throughput_ratio_by_pool.svg").read_text() == svg


def test_without_streamed_numbers_there_is_no_latency_plot(tmp_path):
    rows = [table.as_text(row(arm, ttft_p50_s=None, itl_p50_s=None)) for arm in ("stock", "rpc")]
    names = {path.stem for path in plots.draw(rows, "stock", tmp_path)}
    assert "requests_at_once" in names
    assert not names & {"time_to_first_token", "inter_token_latency"}


@pytest.mark.parametrize("percent", [0, 1, 50, 99, 100])
def test_percentiles_are_numpys(percent):
    values = [5.0, 1.0, 4.0, 4.0, 9.5, -2.0]
    assert statistics.percentile(values, percent) == pytest.approx(np.percentile(values, percent))
    assert statistics.percentile([], percent) is None
    assert statistics.percentile([7], percent) == 7


METRICS = """\
# HELP sglang:num_retracted_requests_total x
sglang:num_retracted_requests_total{model_name="m",tp_rank="0"} 3.0
sglang:rpc_compressions_total{model_name="a b {c}"} 10.0
sglang:rpc_compressions_total{model_name="other"} 2.0
sglang:rpc_compressions_created{model_name="m"} 1.7e+09
sglang:num_running_reqs{model_name="m"} 4.0
sglang:rpc_host_backup_bytes 12 1700000000
process_cpu_seconds_total 5
"""


def test_metrics_are_summed_over_labels_and_others_left_out():
    result = counters.parse_metrics(METRICS)
    assert result == {
        "sglang:num_retracted_requests_total": 3,
        "sglang:rpc_compressions_total": 12,
        "sglang:rpc_host_backup_bytes": 12,
    }


def test_the_rpc_block_is_summed_over_ranks_and_its_words_left_out():
    block = {"compressions": 2, "config": {"interval": 64}, "scope_in_effect": "all", "on": True, "share": 0.5}
    assert counters.of_rpc_block({"internal_states": [{"rpc": block}, {"rpc": block}]}) == {
        "rpc.compressions": 4,
        "rpc.share": 1.0,
    }
    assert counters.of_rpc_block({"internal_states": [{}]}) == {}
    assert counters.change({"a": 1, "b": 2}, {"a": 4, "b": 2, "c": 7}) == {"a": 3, "c": 7}


def test_load_is_averaged_over_the_run_and_while_all_was_offered():
    answer = {
        "loads": [
            {"num_running_reqs": 3, "num_waiting_reqs": 1, "num_used_tokens": 40},
            {"num_running_reqs": 1, "num_waiting_reqs": 0, "num_used_tokens": 2},
        ]
    }
    assert load.parse(answer, 1.5) == load.Reading(1.5, 4, 1, 42)
    readings = [
        load.Reading(at, running, 2, 10 * running) for at, running in ((0, 99), (1, 4), (2, 6), (3, 1), (9, 99))
    ]
    seen = load.summarise(readings, began=0.5, full_until=2.5, ended=4)
    assert seen == load.Load(11 / 3, 6, 5.0, 2.0, 110 / 3, 60, 3)
    assert load.summarise([], 0, 1, 2).running_mean is None


def sample(tokens: int = 4, retractions: int = 0, receipt: dict | None = None, error: str | None = None) -> Sample:
    meta = {"num_retractions": retractions, "cached_tokens": 5, "prompt_tokens": 6}
    meta |= {"rpc": receipt} if receipt else {}
    made = Sample(sent=10.0, wanted=4, first=11.0, last=12.0, tokens=tokens, finished=True, error=error, meta=meta)
    made.chunks = [(11.0, 1), (11.2, 1), (12.0, 2)]
    return made


def test_the_numbers_of_a_run():
    receipt = {"compressions": 2, "late": 1, "evicted": 30, "held": 9, "interval": 64, "scope": "all"}
    samples = [sample(receipt=receipt), sample(retractions=2), sample(tokens=3, error="3 tokens instead of 4")]
    result = metrics.of_run(Run(10.0, samples, 11.5, 14.0), load.summarise([], 0, 1, 2), 8, closed_loop=True)
    assert set(result) | {"server_cpu_s", "client_cpu_s", "other_cpu_s", "counters"} == set(metrics.COLUMNS)
    assert (result["wall_s"], result["output_tokens_total"], result["tok_s"]) == (4.0, 8, 2.0)
    assert (result["completed"], result["errors"], result["wrong_length"]) == (2, 1, 1)
    assert result["first_error"] == "3 tokens instead of 4"
    assert (result["ttft_p50_s"], result["latency_p99_s"]) == (1.0, 2.0)
    # Of each sample one gap of 0.2 s and one of 0.8 s for two tokens.
    assert result["itl_p50_s"] == pytest.approx(0.4)
    assert result["gap_max_s"] == pytest.approx(0.8)
    assert (result["retractions"], result["retracted_share"]) == (2, 0.5)
    assert (result["compressed_share"], result["compressions_mean"], result["late"]) == (0.5, 1.0, 1)
    assert (result["evicted_tokens"], result["held_mean"], result["cached_tokens"]) == (30, 9, 10)
    assert result["receipts"] == '{"compressions": 2, "evicted": 30, "held": 9, "late": 1}'
    assert result["tok_s_full"] == pytest.approx(3 * 2 / 1.5)
    assert result["kv_bytes_peak"] is None
