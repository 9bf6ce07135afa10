"""The counters as Prometheus reads them; made anew for each scrape, so that they cost nothing between."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping

import tornado
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from blackhole import __version__
from blackhole.metrics.layout import CELL_INDEX, HISTOGRAMS
from blackhole.metrics.snapshot import Distribution, Snapshot


def text(snapshot: Snapshot, cpu: Mapping[str, float], accept: str) -> tuple[str, bytes]:
    """The media type, one that the header Accept asks for, and the text."""
    encode, kind = choose_encoder(accept)
    return kind, encode(_Counters(snapshot, cpu))


class _Counters(Collector):
    """One snapshot, and seconds of processor time by worker."""

    def __init__(self, snapshot: Snapshot, cpu: Mapping[str, float]) -> None:
        self._snapshot, self._cpu = snapshot, cpu

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot
        build = {"version": __version__, "tornado": tornado.version, "python": platform.python_version()}
        replies: dict[tuple[str, ...], int]
        replies = {(phase, str(code)): count for (phase, code), count in now.replies.items()}
        tls = {result: now.total(f"tls_{result}") for result in ("ok", "failed", "resumed")}
        yield _gauges("build_info", "What runs.", {tuple(build.values()): 1}, *build)
        yield _gauge("start_time_seconds", "When it began, in seconds since 1970.", now.started)
        yield _gauge("workers", "Workers that take connections.", now.cells[CELL_INDEX["accepting"]])
        yield _counters("messages", "Messages that were answered, by outcome.", now.messages, "outcome")
        yield _counter("recipients", "Recipients that were accepted.", now.recipients)
        yield _counter("connections", "Connections that were taken.", sum(now.connections.values()))
        yield _counters("listener_connections", "The same, by listener.", now.connections, "listener")
        yield _gauge("open_connections", "Connections that are open now.", now.open)
        yield _counter("refused_connections", "Those refused in place of the greeting.", now.refused)
        yield _counter("timed_out_connections", "Those closed for their silence.", now.total("timed_out"))
        yield _counter(
            "hung_up_connections", "Those that clients closed without QUIT.", now.closed_without_quit
        )
        yield _counter("received_bytes", "Octets that clients sent.", now.total("received_bytes"))
        yield _counters("commands", "Commands that were answered, by phase.", now.commands, "phase")
        yield _counters("replies", "Replies, by phase and code.", replies, "phase", "code")
        yield _counters("tls_handshakes", "TLS handshakes; ok has the resumed too.", tls, "result")
        yield _counters("violations", "What senders did wrong, by rule.", now.violations, "rule")
        yield _counters("retries", "What was not taken at once, and what came again.", now.outcomes, "event")
        yield _counters("rule_hits", "How often rules of scenarios spoke, by name.", now.rule_hits, "rule")
        yield _counters("worker_cpu_seconds", "Processor time, by place of a worker.", self._cpu, "worker")
        for row in HISTOGRAMS:
            yield _histogram(row.name, row.meaning, now.histograms[row.name])


def _counter(name: str, meaning: str, value: float) -> Metric:
    return CounterMetricFamily(f"blackhole_{name}", meaning, value)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"blackhole_{name}", meaning, value)


Values = Mapping[str, float] | Mapping[tuple[str, ...], float]
"""By what one label says, or several."""


def _counters(name: str, meaning: str, values: Values, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(f"blackhole_{name}", meaning, labels=labels), values)


def _gauges(name: str, meaning: str, values: Values, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(f"blackhole_{name}", meaning, labels=labels), values)


def _filled(metric: CounterMetricFamily | GaugeMetricFamily, values: Values) -> Metric:
    for key, value in values.items():
        metric.add_metric([key] if isinstance(key, str) else list(key), value)
    return metric


def _histogram(name: str, meaning: str, found: Distribution) -> Metric:
    below, buckets = 0, []
    for edge, count in zip(found.edges, found.counts, strict=False):
        below += count
        buckets.append((str(float(edge)), below))
    buckets.append(("+Inf", found.count))
    meaning = f"{meaning[0].upper()}{meaning[1:]}."
    return HistogramMetricFamily(f"blackhole_{name}", meaning, buckets, found.sum)
