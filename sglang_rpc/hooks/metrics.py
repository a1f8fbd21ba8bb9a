"""Prometheus metrics `sglang:rpc_*`, with the labels of SGLang's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang_rpc.runtime.totals import Counters, Totals
from sglang_rpc.types import Compression

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge

    from sglang_rpc.contract.sglang.scheduler import MetricsCollector

COUNTER, GAUGE = "counter", "gauge"


@dataclass(frozen=True)
class Metric:
    """One metric: `sglang:rpc_NAME`, or `sglang:rpc_NAME_total` of a counter."""

    name: str
    kind: str
    help: str

    @property
    def shown(self) -> str:
        """Its name in /metrics."""
        return f"sglang:rpc_{self.name}" + ("_total" if self.kind == COUNTER else "")


METRICS = (
    Metric("compressions", COUNTER, "Compressions applied."),
    Metric("evicted_tokens", COUNTER, "KV entries evicted by compressions."),
    Metric("freed_slots", COUNTER, "KV slots given back to the pool by compressions."),
    Metric("late_compressions", COUNTER, "Compressions after their due date."),
    Metric("early_compressions", COUNTER, "Compressions before their due date, to spare a retraction."),
    Metric("query_slots_in_use", GAUGE, "Requests whose queries are being held for a compression."),
    Metric("query_slots_waiting", GAUGE, "Requests whose compression waits for a query slot."),
    Metric("query_slot_waits", COUNTER, "Steps in which a compression was put off because no query slot was free."),
    Metric("memory_pressure", GAUGE, "Whether the pool is between its watermarks and full, with --rpc-when pressure."),
    Metric("pressure_crossings", COUNTER, "Times memory pressure has begun."),
    Metric("host_backup_bytes", GAUGE, "Host memory that holds the KV of retracted requests, in whole chunks."),
    Metric("restored_requests", COUNTER, "Retracted requests that came back with the KV they had."),
    Metric("refused_backups", COUNTER, "Retracted requests for whose KV there was no room on the host."),
    Metric("reused_requests", COUNTER, "Requests that took over compressed KV of earlier ones."),
    Metric("reused_tokens", COUNTER, "Tokens of their prompts that this KV stood for."),
    Metric("stale_aliases", COUNTER, "Compressed texts that were asked for and had been evicted."),
    Metric("speculative_cuts", COUNTER, "Steps of requests that speculation would have taken past a due date."),
    Metric("speculative_steps", COUNTER, "Steps in which requests that end had drafts verified."),
    Metric("speculative_tokens", COUNTER, "Tokens that these steps gave."),
    Metric("speculative_steps_compressed", COUNTER, "Of these steps, those after the request's first compression."),
    Metric("speculative_tokens_compressed", COUNTER, "Tokens that those gave."),
    Metric("aliases", GAUGE, "Compressed texts that a request may take over, as far as they are not evicted."),
)


class Metrics:
    """METRICS, all there from the start at zero; does nothing if the server runs without --enable-metrics."""

    def __init__(self, collector: MetricsCollector | None):
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._totals: dict[str, int] = {}  # of counters that are told what they add up to
        self._slots_reported = (0, 0, 0)
        if collector is None:
            return
        # Imported late: prometheus_client reads PROMETHEUS_MULTIPROC_DIR, which SGLang sets first.
        from prometheus_client import Counter, Gauge

        labels = collector.labels
        for metric in METRICS:
            name, names = f"sglang:rpc_{metric.name}", list(labels)
            if metric.kind == COUNTER:
                counter = (collector._counter_cls or Counter)(name, metric.help, names)
                self._counters[metric.name] = counter.labels(**labels)
            else:
                gauge = (collector._gauge_cls or Gauge)(name, metric.help, names, multiprocess_mode="mostrecent")
                self._gauges[metric.name] = gauge.labels(**labels)
                self._gauges[metric.name].set(0)

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a counter of METRICS."""
        if self._counters:
            self._counters[name].inc(amount)

    def advance(self, name: str, total: int) -> None:
        """Bring a counter of METRICS to `total`, since the server started."""
        self.add(name, total - self._totals.get(name, 0))
        self._totals[name] = total

    def set(self, name: str, value: float) -> None:
        """Set a gauge of METRICS."""
        if self._gauges:
            self._gauges[name].set(value)

    def compressed(self, compression: Compression, slots_freed: int) -> None:
        """Count a compression that freed `slots_freed` pool slots."""
        self.add("compressions")
        self.add("evicted_tokens", compression.evicted)
        self.add("freed_slots", slots_freed)
        self.add("late_compressions", compression.late)
        self.add("early_compressions", compression.early)

    def speculated(self, totals: Totals) -> None:
        """Count the steps of a request that has ended."""
        self.add("speculative_steps", totals.before.steps + totals.after.steps)
        self.add("speculative_tokens", totals.before.tokens + totals.after.tokens)
        self.add("speculative_steps_compressed", totals.after.steps)
        self.add("speculative_tokens_compressed", totals.after.tokens)

    def memory_pressure(self, begun: bool) -> None:
        """Note that memory pressure has begun, or ended."""
        self.set("memory_pressure", begun)
        self.add("pressure_crossings", begun)

    def query_slots(self, in_use: int, waiting: int, counters: Counters) -> None:
        """Bring the query slots up to date; `counters` since the server started. Does nothing if all is as it was."""
        now = in_use, waiting, counters.slot_waits
        if now != self._slots_reported:
            self.set("query_slots_in_use", in_use)
            self.set("query_slots_waiting", waiting)
            self.advance("query_slot_waits", counters.slot_waits)
            self._slots_reported = now

    def backups(self, used: int, counters: Counters) -> None:
        """Bring the host backups up to date: `used` bytes; `counters` since the server started."""
        self.set("host_backup_bytes", used)
        self.advance("restored_requests", counters.restored)
        self.advance("refused_backups", counters.backups_refused)

    def reuse(self, aliases: int, counters: Counters) -> None:
        """Bring reuse up to date: `aliases` known; `counters` since the server started."""
        self.set("aliases", aliases)
        self.advance("reused_requests", counters.reused_requests)
        self.advance("reused_tokens", counters.reused_tokens)
        self.advance("stale_aliases", counters.stale_aliases)
