"""A run's samples and readings, turned into the numbers of one row."""

from __future__ import annotations

import json
from typing import Any

from eval.bench.client import Sample
from eval.bench.load import Load
from eval.bench.statistics import mean, percentile
from eval.bench.traffic import Run

#: Column -> what it is, with its unit; eval/README.md explains each.
COLUMNS = {
    "wall_s": "from the first request sent to the last answer",
    "output_tokens_total": "generated tokens of samples that ended as asked",
    "tok_s": "output_tokens_total / wall_s",
    "tok_s_full": "tokens received while the whole load was offered, a second (streamed closed loop only)",
    "completed": "samples that ended at exactly the forced length",
    "errors": "samples that did not: refused, aborted, wrong length, not finished",
    "wrong_length": "those of them that ended at another length",
    "first_error": "what the first of them said",
    "running_mean": "requests running at once, mean over the run",
    "running_peak": "the most seen at once",
    "running_mean_full": "mean while the whole load was offered",
    "waiting_mean": "requests in the server's queue, mean",
    "ttft_p50_s": "time to first token, waiting included (streamed only)",
    "ttft_p99_s": "",
    "itl_p50_s": "inter-token latency: time between chunks / tokens of the chunk, each token counted (streamed only)",
    "itl_p99_s": "",
    "gap_max_s": "the longest time between two chunks of one sample: its worst stall (streamed only)",
    "latency_p50_s": "from sending to the last token",
    "latency_p99_s": "",
    "retractions": "times a request lost its KV and was prefilled again",
    "retracted_share": "share of samples that this happened to",
    "compressed_share": "share of samples with at least one compression (receipts)",
    "compressions_mean": "compressions a sample, mean over all",
    "late": "compressions away from their due date",
    "evicted_tokens": "KV entries evicted by compressions",
    "held_mean": "generated tokens a sample held when it ended, mean over those with a receipt",
    "receipts": "JSON: every count in the receipts, summed over samples",
    "cached_tokens": "prompt tokens found in the prefix cache",
    "prompt_tokens_total": "prompt tokens of all samples",
    "kv_tokens_mean": "KV slots in use (prefix cache's idle ones not counted), mean over the run",
    "kv_tokens_peak": "",
    "kv_bytes_mean": "kv_tokens_mean x kv_bytes_per_token",
    "kv_bytes_peak": "",
    "load_readings": "samples of /v1/loads that the means rest on",
    "server_cpu_s": "CPU seconds of the server's processes during the run",
    "client_cpu_s": "CPU seconds of the benchmark's own process during the run",
    "other_cpu_s": "CPU seconds of everything else on the machine meanwhile: what disturbed the run",
    "counters": "JSON: what the server's rpc counters (and /metrics, where on) added during the run",
}


def of_run(run: Run, load: Load, bytes_per_token: int | None, closed_loop: bool) -> dict[str, Any]:
    """Every column but the CPU seconds and counters."""
    good = [sample for sample in run.samples if sample.finished and sample.error is None]
    bad = [sample for sample in run.samples if sample.error is not None]
    tokens = sum(sample.tokens for sample in good)
    receipts = [sample.meta["rpc"] for sample in good if isinstance(sample.meta.get("rpc"), dict)]
    retractions = [sample.meta.get("num_retractions", 0) for sample in good]
    return {
        "wall_s": run.wall_s,
        "output_tokens_total": tokens,
        "tok_s": tokens / run.wall_s if run.wall_s > 0 else None,
        "tok_s_full": _rate_until(run) if closed_loop else None,
        "completed": len(good),
        "errors": len(bad),
        "wrong_length": sum(sample.wrong_length for sample in bad),
        "first_error": bad[0].error if bad else None,
        "running_mean": load.running_mean,
        "running_peak": load.running_peak,
        "running_mean_full": load.running_mean_full,
        "waiting_mean": load.waiting_mean,
        **_latencies(good),
        "retractions": sum(retractions),
        "retracted_share": mean(count > 0 for count in retractions),
        "compressed_share": _share(sum(receipt["compressions"] > 0 for receipt in receipts), len(good)),
        "compressions_mean": _share(sum(receipt["compressions"] for receipt in receipts), len(good)),
        "late": sum(receipt.get("late", 0) for receipt in receipts),
        "evicted_tokens": sum(receipt.get("evicted", 0) for receipt in receipts),
        "held_mean": mean(receipt["held"] for receipt in receipts if "held" in receipt),
        "receipts": json.dumps(_sums(receipts), sort_keys=True),
        "cached_tokens": sum(sample.meta.get("cached_tokens", 0) for sample in good),
        "prompt_tokens_total": sum(sample.meta.get("prompt_tokens", 0) for sample in good),
        "kv_tokens_mean": load.used_tokens_mean,
        "kv_tokens_peak": load.used_tokens_peak,
        "kv_bytes_mean": _times(load.used_tokens_mean, bytes_per_token),
        "kv_bytes_peak": _times(load.used_tokens_peak, bytes_per_token),
        "load_readings": load.readings,
    }


def _latencies(good: list[Sample]) -> dict[str, float | None]:
    first = [sample.first - sample.sent for sample in good if sample.first is not None]
    whole = [sample.last - sample.sent for sample in good if sample.last is not None]
    gaps, each = [], []
    for sample in good:
        for (before, _), (at, new) in zip(sample.chunks, sample.chunks[1:], strict=False):
            gaps.append(at - before)
            each += [(at - before) / new] * new
    return {
        "ttft_p50_s": percentile(first, 50),
        "ttft_p99_s": percentile(first, 99),
        "itl_p50_s": percentile(each, 50),
        "itl_p99_s": percentile(each, 99),
        "gap_max_s": max(gaps, default=None),
        "latency_p50_s": percentile(whole, 50),
        "latency_p99_s": percentile(whole, 99),
    }


def _rate_until(run: Run) -> float | None:
    """Tokens a second until the last request was sent; None when nothing was streamed, or all was sent at once."""
    seconds = run.last_sent - run.began
    arrived = [new for sample in run.samples for at, new in sample.chunks if at <= run.last_sent]
    return sum(arrived) / seconds if arrived and seconds > 1 else None


def _sums(receipts: list[dict[str, Any]]) -> dict[str, float]:
    """Counts that a later version of the package adds to its receipts find their place here."""
    settings = ("interval", "window", "ratio")
    found: dict[str, float] = {}
    for receipt in receipts:
        for name, value in receipt.items():
            if name not in settings and isinstance(value, (int, float)) and not isinstance(value, bool):
                found[name] = found.get(name, 0) + value
    return found


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _times(value: float | None, factor: int | None) -> float | None:
    return None if value is None or factor is None else value * factor
