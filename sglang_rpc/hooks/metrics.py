"""Prometheus metrics `sglang:rpc_*`, with the labels of SGLang's own."""

from __future__ import annotations

from typing import Any

from sglang_rpc.runtime.compressor import Counters
from sglang_rpc.types import Compression


class Metrics:
    """Counters and gauges; does nothing if the server runs without --enable-metrics."""

    def __init__(self, collector: Any | None):
        self._labels = None if collector is None else collector.labels
        if collector is None:
            return
        # Imported late: prometheus_client reads PROMETHEUS_MULTIPROC_DIR, which SGLang sets first.
        from prometheus_client import Counter, Gauge

        counter, gauge = collector._counter_cls or Counter, collector._gauge_cls or Gauge
        names = list(self._labels)
        self._compressions = counter("sglang:rpc_compressions", "Compressions carried out.", names)
        self._evicted = counter("sglang:rpc_evicted_tokens", "KV entries evicted by compressions.", names)
        self._freed = counter("sglang:rpc_freed_slots", "KV slots given back to the pool by compressions.", names)
        self._late = counter("sglang:rpc_late_compressions", "Compressions away from their due date.", names)
        self._in_use = gauge(
            "sglang:rpc_query_slots_in_use",
            "Requests whose queries are being held for a compression.",
            names,
            multiprocess_mode="mostrecent",
        )
        self._early = counter(
            "sglang:rpc_early_compressions", "Compressions before their due date, to spare a retraction.", names
        )
        self._pressed = gauge(
            "sglang:rpc_memory_pressure",
            "Whether the pool is between its watermarks and full, with --rpc-when pressure.",
            names,
            multiprocess_mode="mostrecent",
        )
        self._crossings = counter(
            "sglang:rpc_pressure_crossings", "Times the pool has become under memory pressure.", names
        )
        self._backup_bytes = gauge(
            "sglang:rpc_host_backup_bytes",
            "Host memory that holds the KV of retracted requests.",
            names,
            multiprocess_mode="mostrecent",
        )
        self._restored = counter(
            "sglang:rpc_restored_requests", "Retracted requests that came back with the KV they had.", names
        )
        self._refused = counter(
            "sglang:rpc_refused_backups", "Retracted requests for whose KV there was no room on the host.", names
        )
        self._reported = (0, 0)
        for metric in (self._restored, self._refused, self._early, self._crossings):
            metric.labels(**self._labels)  # there from the start, at zero
        self._backup_bytes.labels(**self._labels).set(0)
        self.slots_in_use(0)
        self._pressed.labels(**self._labels).set(0)

    def compressed(self, compression: Compression, slots_freed: int) -> None:
        if self._labels is None:
            return
        self._compressions.labels(**self._labels).inc()
        self._evicted.labels(**self._labels).inc(compression.evicted)
        self._freed.labels(**self._labels).inc(slots_freed)
        self._late.labels(**self._labels).inc(compression.late)
        self._early.labels(**self._labels).inc(compression.early)

    def slots_in_use(self, count: int) -> None:
        if self._labels is not None:
            self._in_use.labels(**self._labels).set(count)

    def under_pressure(self, under_pressure: bool) -> None:
        if self._labels is not None:
            self._pressed.labels(**self._labels).set(under_pressure)
            self._crossings.labels(**self._labels).inc(under_pressure)

    def backups(self, used: int, counters: Counters) -> None:
        """`used`: bytes; `counters`: since the server started."""
        if self._labels is None:
            return
        self._backup_bytes.labels(**self._labels).set(used)
        restored, refused = self._reported
        self._reported = counters.restored, counters.backups_refused
        self._restored.labels(**self._labels).inc(counters.restored - restored)
        self._refused.labels(**self._labels).inc(counters.backups_refused - refused)
