"""Prometheus metrics `sglang:rpc_*`, with the labels of SGLang's own."""

from __future__ import annotations

from typing import Any

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
        self._catch_ups = counter("sglang:rpc_catch_ups", "Compressions away from their due date.", names)
        self._in_use = gauge(
            "sglang:rpc_query_slots_in_use",
            "Requests whose queries are being held for a compression.",
            names,
            multiprocess_mode="mostrecent",
        )
        self.slots_in_use(0)

    def compressed(self, compression: Compression, slots_freed: int) -> None:
        if self._labels is None:
            return
        self._compressions.labels(**self._labels).inc()
        self._evicted.labels(**self._labels).inc(compression.evicted)
        self._freed.labels(**self._labels).inc(slots_freed)
        self._catch_ups.labels(**self._labels).inc(compression.catch_up)

    def slots_in_use(self, count: int) -> None:
        if self._labels is not None:
            self._in_use.labels(**self._labels).set(count)
