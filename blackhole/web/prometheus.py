"""The counters in the formats that Prometheus reads, rendered anew for each scrape.

METRICS is the one table of all metrics: `/metrics` and the reference page of the documents are made of it.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import tornado
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

from blackhole import __version__
from blackhole.metrics.layout import CELL_INDEX, HISTOGRAMS
from blackhole.metrics.rule_limits import by_decision, limits_as_labels
from blackhole.metrics.snapshot import Snapshot
from blackhole.rules.outcomes import RETRY_INTERVALS, UNCERTAIN_OUTCOMES
from blackhole.store.domain_log import DOMAIN_OUTCOMES

METRIC_PREFIX: Final = "blackhole_"


class Reading(NamedTuple):
    """What the values of metrics are taken from."""

    snapshot: Snapshot
    worker_cpu: Mapping[str, float]
    """Seconds of processor time, by the number of a worker's row."""
    machine_ages: Mapping[str, float]
    """Seconds since the last write of each machine of a fleet, by its name."""


class Buckets(NamedTuple):
    """The value of a histogram. `total`, the sum of all values, is None where it is not counted."""

    edges: Sequence[float]
    counts: Sequence[int]
    """Number of values in each bucket; the last bucket has no upper edge."""
    total: float | None


MetricValue = float | Mapping[str, float] | Mapping[tuple[str, ...], float] | Buckets
"""A number; a number by one label or by several; or a histogram."""


class MetricRow(NamedTuple):
    """A metric: its name without the prefix, and for a counter without `_total`, as `prometheus_client` wants
    it."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    help: str
    query: str
    """An example in PromQL."""
    value: Callable[[Reading], MetricValue]
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name in the exposition."""
        return f"{METRIC_PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


BUILD: Final = {"version": __version__, "tornado": tornado.version, "python": platform.python_version()}

METRICS: Final = (
    MetricRow(
        "build_info", "gauge", "Versions of Blackhole, Tornado and Python; the value is 1.",
        "count by (version) (blackhole_build_info)",
        lambda reading: {tuple(BUILD.values()): 1},
        tuple(BUILD),
    ),
    MetricRow(
        "start_time_seconds", "gauge", "Start of the server, in seconds since 1970.",
        "time() - blackhole_start_time_seconds",
        lambda reading: reading.snapshot.started,
    ),
    MetricRow(
        "workers", "gauge", "Workers that accept connections.",
        "blackhole_workers == 0",
        lambda reading: reading.snapshot.cells[CELL_INDEX["accepting"]],
    ),
    MetricRow(
        "messages", "counter", "Messages that ended and were answered.",
        "sum by (outcome) (rate(blackhole_messages_total[1m]))",
        lambda reading: reading.snapshot.messages,
        ("outcome",),
    ),
    MetricRow(
        "recipients", "counter", "Recipients that were accepted.",
        "rate(blackhole_recipients_total[1m])",
        lambda reading: reading.snapshot.recipients,
    ),
    MetricRow(
        "connections", "counter", "Connections that were accepted.",
        "rate(blackhole_connections_total[1m])",
        lambda reading: sum(reading.snapshot.connections.values()),
    ),
    MetricRow(
        "listener_connections", "counter", "Connections that were accepted, by listener.",
        "topk(3, rate(blackhole_listener_connections_total[1m]))",
        lambda reading: reading.snapshot.connections,
        ("listener",),
    ),
    MetricRow(
        "open_connections", "gauge", "Connections that are open now.",
        "max_over_time(blackhole_open_connections[1h])",
        lambda reading: reading.snapshot.open,
    ),
    MetricRow(
        "refused_connections", "counter", "Connections refused with 4xx or 5xx in place of the greeting.",
        "increase(blackhole_refused_connections_total[1h])",
        lambda reading: reading.snapshot.refused,
    ),
    MetricRow(
        "client_limits", "counter", "Times that a client met a limit, by the option of the limit.",
        "topk(3, increase(blackhole_client_limits_total[1h]))",
        lambda reading: reading.snapshot.limits_met,
        ("limit",),
    ),
    MetricRow(
        "store_questions", "counter", "Questions that mail had for a shared store.",
        "rate(blackhole_store_questions_total[1m])",
        lambda reading: reading.snapshot.store["questions"],
    ),
    MetricRow(
        "store_unanswered", "counter",
        "Questions that a shared store did not answer in time, or was not asked because it did not answer.",
        "rate(blackhole_store_unanswered_total[5m]) / rate(blackhole_store_questions_total[5m]) > 0.01",
        lambda reading: reading.snapshot.store["unanswered"],
    ),
    MetricRow(
        "store_openings", "counter", "Times that a worker stopped asking a shared store that did not answer.",
        "increase(blackhole_store_openings_total[1h])",
        lambda reading: reading.snapshot.store["openings"],
    ),
    MetricRow(
        "timed_out_connections", "counter", "Connections closed because the client was silent for too long.",
        "increase(blackhole_timed_out_connections_total[1h])",
        lambda reading: reading.snapshot.total("timed_out"),
    ),
    MetricRow(
        "connections_closed_without_quit", "counter",
        "Connections that the client closed without QUIT after its first command.",
        "increase(blackhole_connections_closed_without_quit_total[1h])",
        lambda reading: reading.snapshot.closed_without_quit,
    ),
    MetricRow(
        "connections_closed_without_command", "counter",
        "Connections that the client closed before it sent anything, as health checks do.",
        "rate(blackhole_connections_closed_without_command_total[5m])",
        lambda reading: reading.snapshot.total("closed_without_command"),
    ),
    MetricRow(
        "received_bytes", "counter", "Octets received from clients.",
        "8 * rate(blackhole_received_bytes_total[1m])",
        lambda reading: reading.snapshot.total("received_bytes"),
    ),
    MetricRow(
        "commands", "counter", "Commands that were answered, by phase.",
        "sum by (phase) (rate(blackhole_commands_total[1m]))",
        lambda reading: reading.snapshot.commands,
        ("phase",),
    ),
    MetricRow(
        "replies", "counter", "Replies by phase and code.",
        'sum by (phase) (rate(blackhole_replies_total{code=~"[45].."}[5m]))',
        lambda reading: _replies(reading.snapshot),
        ("phase", "code"),
    ),
    MetricRow(
        "tls_handshakes", "counter", 'TLS handshakes by result; "ok" includes "resumed".',
        'rate(blackhole_tls_handshakes_total{result="failed"}[5m])',
        lambda reading: {
            result: reading.snapshot.total(f"tls_{result}") for result in ("ok", "failed", "resumed")
        },
        ("result",),
    ),
    MetricRow(
        "tls_failures", "counter", "TLS handshakes that failed, by the client's alert or another reason.",
        "topk(3, increase(blackhole_tls_failures_total[1h]))",
        lambda reading: reading.snapshot.tls_failures,
        ("reason",),
    ),
    MetricRow(
        "tls_menu_connections", "counter",
        "Connections at an entry of the TLS menu, by result: the handshake failed, the client left without"
        " a message, or it sent one.",
        'increase(blackhole_tls_menu_connections_total{entry="expired",result="sent"}[1h])',
        lambda reading: _tls_menu(reading.snapshot),
        ("entry", "result"),
    ),
    MetricRow(
        "violations", "counter", "Violations of SMTP by senders that are all counted, by rule.",
        "topk(5, increase(blackhole_violations_total[1h]))",
        lambda reading: reading.snapshot.counted_violations,
        ("rule",),
    ),
    MetricRow(
        "sampled_violations", "counter",
        "What was inspected and in which a violation was found, by rule.",
        'increase(blackhole_sampled_violations_total{rule="bare-lf"}[1h])'
        ' / scalar(increase(blackhole_inspected_total{what="messages"}[1h]))',
        lambda reading: {name: one.found for name, one in reading.snapshot.sampled_violations.items()},
        ("rule",),
    ),
    MetricRow(
        "inspected", "counter",
        "Sessions and messages that were inspected for violations, and of messages the headers, the whole"
        " contents and the DKIM signatures.",
        'increase(blackhole_inspected_total{what="messages"}[1h])',
        lambda reading: {what: one.inspected for what, one in reading.snapshot.inspected.items()},
        ("what",),
    ),
    MetricRow(
        "violations_estimate", "gauge",
        "Violations since the start that are expected from what was found in samples, by rule: the estimate,"
        " and the low and high end of its 95 % confidence interval.",
        'blackhole_violations_estimate{bound="low"} > 0',
        lambda reading: _estimates(reading.snapshot),
        ("rule", "bound"),
    ),
    MetricRow(
        "deferred_recipients", "counter", "Recipients that were deferred with 4xx for the first time.",
        "increase(blackhole_deferred_recipients_total[1h])",
        lambda reading: reading.snapshot.outcomes["deferred"],
    ),
    MetricRow(
        "recipients_deferred_again", "counter", "Retries of deferred recipients that were deferred again.",
        "increase(blackhole_recipients_deferred_again_total[1h])",
        lambda reading: reading.snapshot.outcomes["deferred_again"],
    ),
    MetricRow(
        "refused_recipients", "counter", "Recipients that were refused with 5xx while retries are tracked.",
        "increase(blackhole_refused_recipients_total[1h])",
        lambda reading: reading.snapshot.outcomes["refused"],
    ),
    MetricRow(
        "retried_recipients", "counter", "Deferred (4xx) or refused (5xx) recipients that were retried.",
        'increase(blackhole_retried_recipients_total{after="5xx"}[1h])',
        lambda reading: {
            after: reading.snapshot.outcomes[f"retried_after_{after}"] for after in ("4xx", "5xx")
        },
        ("after",),
    ),
    MetricRow(
        "recipients_accepted_on_retry", "counter", "Deferred recipients that were accepted on a retry.",
        "rate(blackhole_recipients_accepted_on_retry_total[1h])"
        " / rate(blackhole_deferred_recipients_total[1h])",
        lambda reading: reading.snapshot.outcomes["accepted_on_retry"],
    ),
    MetricRow(
        "uncertain_outcomes", "counter",
        "Messages after which the sender cannot know whether they were accepted, by what happened.",
        "sum by (outcome) (increase(blackhole_uncertain_outcomes_total[1h]))",
        lambda reading: {
            name: reading.snapshot.outcomes[name] for name, _ in UNCERTAIN_OUTCOMES.values()
        },
        ("outcome",),
    ),
    MetricRow(
        "retried_uncertain_outcomes", "counter", "Messages sent again after an uncertain outcome.",
        "sum by (outcome) (increase(blackhole_retried_uncertain_outcomes_total[1h]))",
        lambda reading: {
            name: reading.snapshot.outcomes[f"{name}_retried"] for name, _ in UNCERTAIN_OUTCOMES.values()
        },
        ("outcome",),
    ),
    MetricRow(
        "retry_interval_seconds", "histogram", "Time from the deferral of a recipient to its next attempt.",
        "histogram_quantile(0.5, rate(blackhole_retry_interval_seconds_bucket[1h]))",
        lambda reading: Buckets(RETRY_INTERVALS, reading.snapshot.retry_intervals, None),
    ),
    MetricRow(
        "rule_hits", "counter", "Matches of rules of the scenarios, by name.",
        "increase(blackhole_rule_hits_total[1h])",
        lambda reading: reading.snapshot.rule_hits,
        ("rule",),
    ),
    MetricRow(
        "rule_limit_decisions", "counter",
        "Commands that the throttle or greylist of a rule let pass, and those that it limited, by rule.",
        'rate(blackhole_rule_limit_decisions_total{decision="limited"}[5m])'
        " / ignoring(decision) sum without (decision) (rate(blackhole_rule_limit_decisions_total[5m]))",
        lambda reading: by_decision(reading.snapshot.rule_limits),
        ("rule", "decision"),
    ),
    MetricRow(
        "rule_limit_info", "gauge", "The throttle or greylist of a rule; the value is 1.",
        "blackhole_rule_limit_info",
        lambda reading: limits_as_labels(reading.snapshot.rule_limits),
        ("rule", "limit"),
    ),
    MetricRow(
        "domain_recipients", "counter",
        "Recipients by domain and by what became of them, with --show-domains: of the 100 domains with the "
        "most recipients, and of the others together.",
        "topk(10, sum by (domain) (increase(blackhole_domain_recipients_total{outcome=\"deferred\"}[1h])))",
        lambda reading: _domain_recipients(reading.snapshot),
        ("domain", "outcome"),
    ),
    MetricRow(
        "domain_retry_interval_seconds", "gauge",
        "Upper limit of the time from the deferral of a recipient to its next attempt, by domain and "
        "percentile, with --show-domains.",
        "blackhole_domain_retry_interval_seconds{percentile=\"50\"}",
        lambda reading: _domain_retries(reading.snapshot),
        ("domain", "percentile"),
    ),
    MetricRow(
        "worker_cpu_seconds", "counter",
        "Processor time by the place of a worker, which its replacement takes.",
        "sum by (worker) (rate(blackhole_worker_cpu_seconds_total[1m]))",
        lambda reading: reading.worker_cpu,
        ("worker",),
    ),
    MetricRow(
        "fleet_machine_age_seconds", "gauge",
        "Seconds since the last write of each machine, with scope=fleet.",
        "blackhole_fleet_machine_age_seconds > 10",
        lambda reading: reading.machine_ages,
        ("machine",),
    ),
    *(
        MetricRow(
            row.name, "histogram", f"{row.meaning}.",
            f"histogram_quantile(0.99, rate({METRIC_PREFIX}{row.name}_bucket[5m]))",
            lambda reading, name=row.name: _buckets(reading, name),  # type: ignore[misc]
        )
        for row in HISTOGRAMS
    ),
)  # fmt: skip
"""Every metric, in the order of the exposition."""


FORMAT: Final = re.compile(
    r"\s*(application/openmetrics-text|text/plain)\s*"
    r"(;\s*(version=(0\.0\.1|0\.0\.4|1\.0\.0)|charset=utf-8|q=[01](\.[0-9]{0,3})?"
    r"|escaping=(allow-utf-8|underscores|dots|values))\s*){0,4}"
)
"""Matches a format in the header field Accept that `choose_encoder` can take; of others it raises errors."""


def text(
    snapshot: Snapshot, worker_cpu: Mapping[str, float], accept: str, machine_ages: Mapping[str, float]
) -> tuple[str, bytes]:
    """Return the media type, one that the header field Accept asks for, and the exposition in it."""
    encode, media_type = choose_encoder(",".join(filter(FORMAT.fullmatch, accept.split(","))))
    return media_type, encode(ReadingCollector(Reading(snapshot, worker_cpu, machine_ages)))


class ReadingCollector(Collector):
    """A collector of one reading."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the table."""
        for row in METRICS:
            yield _family(row, row.value(self._reading))


def _family(row: MetricRow, value: MetricValue) -> Metric:
    """Return a metric with its samples."""
    name = METRIC_PREFIX + row.name
    if isinstance(value, Buckets):
        return _histogram(name, row.help, value)
    kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    family = kind(name, row.help, labels=row.labels)
    for labels, number in value.items() if isinstance(value, Mapping) else [((), value)]:
        family.add_metric([labels] if isinstance(labels, str) else list(labels), number)
    return family


def _histogram(name: str, meaning: str, value: Buckets) -> Metric:
    """Return a histogram, whose buckets are cumulative. Without a total it has neither sum nor count."""
    family = HistogramMetricFamily(name, meaning)
    below, buckets = 0, []
    for edge, count in zip(value.edges, value.counts, strict=False):
        below += count
        buckets.append((str(float(edge)), below))
    family.add_metric([], [*buckets, ("+Inf", sum(value.counts))], value.total)
    return family


def _replies(snapshot: Snapshot) -> Mapping[tuple[str, ...], float]:
    """Return the replies by phase and code, both as text."""
    return {(phase, str(code)): count for (phase, code), count in snapshot.replies.items()}


def _domain_recipients(snapshot: Snapshot) -> Mapping[tuple[str, ...], float]:
    """Return the recipients by domain and outcome."""
    return {
        (one.domain, outcome): getattr(one, outcome)
        for one in snapshot.domains or ()
        for outcome in DOMAIN_OUTCOMES
    }


def _domain_retries(snapshot: Snapshot) -> Mapping[tuple[str, ...], float]:
    """Return the upper limits of the intervals of retries by domain and percentile."""
    return {
        (one.domain, percentile): seconds
        for one in snapshot.domains or ()
        for percentile, seconds in (("50", one.retry_p50), ("99", one.retry_p99))
        if seconds is not None
    }


def _tls_menu(snapshot: Snapshot) -> Mapping[tuple[str, ...], float]:
    """Return the connections at the entries of the TLS menu, by entry and result."""
    return {
        (entry, result): count
        for entry, results in snapshot.tls_menu.items()
        for result, count in results.items()
    }


def _estimates(snapshot: Snapshot) -> Mapping[tuple[str, ...], float]:
    """Return what samples let expect, by rule and bound."""
    return {
        (name, bound): value
        for name, one in snapshot.sampled_violations.items()
        for bound, value in zip(
            ("low", "estimate", "high"), sorted((*one.interval, one.estimate)), strict=True
        )
    }


def _buckets(reading: Reading, name: str) -> Buckets:
    """Return the value of a histogram of the counters."""
    found = reading.snapshot.histograms[name]
    return Buckets(found.edges, found.counts, found.sum)
