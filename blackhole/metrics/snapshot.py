"""A snapshot of the shared counters, and what a reader can ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from operator import sub
from typing import Any, Final, NamedTuple

from blackhole.metrics.evidence import Evidence, EvidenceLog
from blackhole.metrics.layout import (
    CELL_INDEX,
    CELLS_START,
    CODES_PER_PHASE,
    FIRST_CODE,
    HISTOGRAM_INDEX,
    HISTOGRAMS,
    INSPECTED_START,
    LIMITS_START,
    LISTENERS_START,
    MAX_LISTENERS,
    OUTCOMES_START,
    SAMPLED_NUMBERS,
    SAMPLED_START,
    VIOLATING_CONNECTIONS_START,
    VIOLATIONS_START,
    Histogram,
)
from blackhole.metrics.rule_limits import RuleLimit, read_limits
from blackhole.metrics.samples import SampledCount
from blackhole.metrics.tls_events import ENTRY_RESULTS, TLS_FAILURES, entry_cell, failure_cell
from blackhole.rules.outcomes import EVENTS, RETRY_INTERVALS, UNCERTAIN_OUTCOMES
from blackhole.settings import CLIENT_LIMITS
from blackhole.smtp.state import PHASES
from blackhole.smtp.violations import IN_HEADERS, INSPECTED, SAMPLED, VIOLATIONS
from blackhole.store.client_log import Client
from blackhole.store.domain_log import Domain
from blackhole.tls_menu import TLS_MENU

DISPOSITIONS: Final = {2: "accepted", 4: "deferred", 5: "rejected"}
"""First digit of the reply to the end of a message -> the disposition of the message."""


UNCERTAIN_KEYS: Final = {
    "closed_before_reply": "before",
    "closed_within_reply": "within",
    "closed_after_reply": "after",
    "reply_too_late": "late",
}
"""Uncertain outcome -> its key in JSON."""


class ProcessStatus(NamedTuple):
    """A live process of the server."""

    title: str
    pid: int
    silent: float
    """Seconds since its last heartbeat; a heartbeat comes once a second."""
    open: int
    """Open connections."""
    cpu: float
    """Seconds of processor time of all processes that had this row, as of a second ago."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram as it was read.

    >>> sizes = Distribution(counts=(1, 0, 3, 0), sum=10.0, unit=1)
    >>> sizes.count, sizes.mean, sizes.quantile(0.625)
    (4, 2.5, 2.5)
    """

    counts: tuple[int, ...]
    """Number of values in each bucket."""
    sum: float
    unit: float
    sampled: bool = False
    """Whether only a sample of the values was recorded."""

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """The arithmetic mean; 0.0 without values."""
        return self.sum / self.count if self.count else 0.0

    @property
    def edges(self) -> tuple[float, ...]:
        """The largest value of each bucket but the last, which has no upper limit."""
        return tuple(
            ((1 << k) - 1 if self.unit == 1 else 1 << k) * self.unit for k in range(len(self.counts) - 1)
        )

    def quantile(self, share: float) -> float | None:
        """Return a quantile, interpolated in its bucket as if the values were spread evenly; None without
        values.

        In the last bucket, which has no upper limit, it is the lower limit.
        """
        wanted = share * self.count
        seen = 0
        for k, (edge, count) in enumerate(zip(self.edges, self.counts, strict=False)):
            if count and seen + count >= wanted:
                lower = (1 << k >> 1) * self.unit
                return lower + (edge - lower) * (wanted - seen) / count
            seen += count
        return self.edges[-1] if self.count else None

    def as_dict(self) -> dict[str, Any]:
        """Return the form for JSON. Empty buckets are left out; null stands for what is not known."""
        return {
            "sampled": self.sampled,
            "count": self.count,
            "sum": self.sum,
            "mean": self.mean if self.count else None,
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "buckets": {
                f"{edge:g}": count for edge, count in zip(self.edges, self.counts, strict=False) if count
            },
            "beyond": self.counts[-1],
        }


@dataclass(frozen=True)
class Snapshot:
    """All counters at one moment, or the difference of two snapshots: what happened between them.

    In a difference, gauges (`processes`, `open`) are those of the later one.
    """

    at: float
    """Monotonic time; in a difference, the time between the two."""
    started: float
    """When the server began, in seconds since 1970."""
    listeners: tuple[str, ...]
    processes: tuple[ProcessStatus, ...]
    """Every live process that has a row, sorted by title."""
    rule_counters: Mapping[str, int]
    """Name of a rule -> index of the cell that counts its matches."""
    cells: tuple[int, ...]
    """The sum of all rows."""
    clock_origin: float = 0.0
    """Monotonic time of the start of the server; 0 in a difference."""
    clients: tuple[Client, ...] | None = None
    """The clients since the start, the busiest first; None without a client log, and in a difference."""
    domains: tuple[Domain, ...] | None = None
    """The domains of recipients since the start, those with the most first, and last the rest together; None
    without a log of them, and in a difference."""
    evidence_log: EvidenceLog | None = None
    """Where violations were committed; None in a difference of which the time is not known."""
    period: tuple[float, float] = (0.0, inf)
    """Beginning and end of the time from which there is evidence, in seconds since 1970."""
    notes: tuple[str, ...] = ()
    """What a report says of where the counters come from, and of what it cannot know."""
    rule_limit_texts: Mapping[str, str] = field(default_factory=dict)
    """Name of a rule -> its throttle or greylist as text, if it has one."""

    def __sub__(self, earlier: Snapshot) -> Snapshot:
        return Snapshot(
            self.at - earlier.at,
            self.started,
            self.listeners,
            self.processes,
            self.rule_counters,
            tuple(map(sub, self.cells, earlier.cells)),
            rule_limit_texts=self.rule_limit_texts,
        )

    @property
    def seconds(self) -> float:
        """The time that the counts took: since the start of the server, or between two snapshots."""
        return max(0.0, self.at - self.clock_origin)

    def total(self, name: str) -> int:
        """Return the value of a counter of `layout.CELLS`. Raises KeyError for an unknown name."""
        return self.cells[CELL_INDEX[name]]

    @property
    def open(self) -> int:
        """Open connections."""
        return sum(process.open for process in self.processes)

    @property
    def cpu(self) -> float:
        """Seconds of processor time of all workers."""
        return self.total("cpu_microseconds") / 1e6

    @cached_property
    def replies(self) -> Mapping[tuple[str, int], int]:
        """Replies by phase and code, without those that were never sent."""
        return {
            (phase, code): count
            for phase in PHASES
            for code, count in enumerate(self._phase(phase), FIRST_CODE)
            if count
        }

    @cached_property
    def commands(self) -> Mapping[str, int]:
        """Commands that were answered, by phase; CONNECT and the end of a message are no commands."""
        return {phase: sum(self._phase(phase)) for phase in PHASES if phase not in ("CONNECT", ".")}

    @cached_property
    def messages(self) -> Mapping[str, int]:
        """Messages that ended and were answered, by disposition."""
        return {name: self._replies_of_class(".", digit) for digit, name in DISPOSITIONS.items()}

    @property
    def recipients(self) -> int:
        """Recipients that were accepted."""
        return self._replies_of_class("RCPT", 2)

    @cached_property
    def connections(self) -> Mapping[str, int]:
        """Accepted connections by listener."""
        counts = self.cells[LISTENERS_START : LISTENERS_START + MAX_LISTENERS]
        return dict(zip(self.listeners, counts, strict=False))

    @property
    def refused(self) -> int:
        """Connections that were refused in place of the greeting."""
        return self._replies_of_class("CONNECT", 4) + self._replies_of_class("CONNECT", 5)

    @cached_property
    def counted_violations(self) -> Mapping[str, int]:
        """Violations that are all counted, by name, in the order of the table."""
        names = (violation.name for violation in VIOLATIONS)
        return dict(zip(names, self.cells[VIOLATIONS_START:SAMPLED_START], strict=True))

    @cached_property
    def sampled_violations(self) -> Mapping[str, SampledCount]:
        """Violations that are looked for in samples, by name, in the order of the table."""
        found = dict(zip(SAMPLED, self.cells[SAMPLED_START:VIOLATING_CONNECTIONS_START], strict=True))
        inspected = self.inspected
        return {
            violation.name: inspected[violation.sampled_in].with_found(found[violation.name])
            for violation in VIOLATIONS
            if violation.sampled_in
        }

    @cached_property
    def violations(self) -> Mapping[str, int]:
        """How often each violation was seen, counted or in a sample, by name in the order of the table."""
        samples = self.sampled_violations
        return {
            name: count + (samples[name].found if name in samples else 0)
            for name, count in self.counted_violations.items()
        }

    @cached_property
    def violating_connections(self) -> Mapping[str, int]:
        """The number of connections in which each violation was seen, by name."""
        names = (violation.name for violation in VIOLATIONS)
        return dict(zip(names, self.cells[VIOLATING_CONNECTIONS_START:INSPECTED_START], strict=True))

    @cached_property
    def evidence(self) -> Mapping[str, Evidence]:
        """Where violations were committed, by name, as far as it is known when this is first asked for."""
        return {} if self.evidence_log is None else self.evidence_log.read(*self.period)

    @property
    def inspected(self) -> Mapping[str, SampledCount]:
        """How many sessions, messages and contents of messages were inspected, of how many.

        Sessions are the connections that were greeted, but for those that the client closed without a
        command. Messages are those that were answered. Headers and contents are those of messages, signatures
        those in the headers that were inspected.
        """
        sessions = sum(self.connections.values()) - self.refused - self.total("closed_without_command")
        inspected = self.cells[INSPECTED_START:OUTCOMES_START]
        messages = sum(self.messages.values())
        unsigned = self.cells[SAMPLED_START + SAMPLED_NUMBERS["no-dkim-signature"]]
        signed = inspected[INSPECTED.index(IN_HEADERS)] - unsigned
        totals = sessions, messages, messages, messages, signed
        return {
            what: SampledCount(0, count, max(total, count), what)
            for what, count, total in zip(INSPECTED, inspected, totals, strict=True)
        }

    @cached_property
    def outcomes(self) -> Mapping[str, int]:
        """Outcomes of messages and retries, by the names of `outcomes.EVENTS`."""
        names = (event.name for event in EVENTS)
        return dict(zip(names, self.cells[OUTCOMES_START:LISTENERS_START], strict=True))

    @property
    def tls_failures(self) -> dict[str, int]:
        """TLS handshakes that failed, by the reason in TLS_FAILURES."""
        return {reason: self.total(failure_cell(reason)) for reason in TLS_FAILURES}

    @property
    def tls_menu(self) -> dict[str, dict[str, int]]:
        """Connections at each entry of the TLS menu, by what became of them."""
        return {
            entry.name: {result: self.total(entry_cell(entry.name, result)) for result in ENTRY_RESULTS}
            for entry in TLS_MENU
        }

    @property
    def limits_met(self) -> dict[str, int]:
        """How often clients met each limit of `settings.CLIENT_LIMITS`."""
        return dict(zip(CLIENT_LIMITS, self.cells[LIMITS_START:CELLS_START], strict=True))

    @property
    def store(self) -> dict[str, int]:
        """How often mail had a question for a shared store, and how often there was no answer in time."""
        return {name: self.total(f"store_{name}") for name in ("questions", "unanswered", "openings")}

    @property
    def rule_hits(self) -> dict[str, int]:
        """Matches by rule, of all rules that were ever in force."""
        return {name: self.cells[cell] for name, cell in self.rule_counters.items()}

    @cached_property
    def rule_limits(self) -> Mapping[str, RuleLimit]:
        """What the limits of rules have decided, by rule: of all rules that have one, or had."""
        return read_limits(self.rule_counters, self.rule_limit_texts, self.cells)

    @property
    def retries(self) -> dict[str, Any]:
        """What became of mail that was deferred, refused or left uncertain, for JSON.

        `waits` counts retries by the upper limit, in seconds, of the time since the attempt before.
        """
        seen = self.outcomes
        return {
            "deferred": {
                "recipients": seen["deferred"],
                "returned": seen["retried_after_4xx"],
                "missing": max(0, seen["deferred"] - seen["retried_after_4xx"]),
                "again": seen["deferred_again"],
                "taken": seen["accepted_on_retry"],
                "waits": dict(zip(map(str, (*RETRY_INTERVALS, "more")), self.retry_intervals, strict=True)),
            },
            "refused": {"recipients": seen["refused"], "returned": seen["retried_after_5xx"]},
            "uncertain": {
                UNCERTAIN_KEYS[name]: {"messages": seen[name], "returned": seen[f"{name}_retried"]}
                for name, _ in UNCERTAIN_OUTCOMES.values()
            },
        }

    @property
    def retry_intervals(self) -> tuple[int, ...]:
        """Retries by the time since the attempt before: for each of RETRY_INTERVALS, and for longer times."""
        seen = self.outcomes
        return (*(seen[f"retry_within_{limit}"] for limit in RETRY_INTERVALS), seen["retry_later"])

    @property
    def closed_without_quit(self) -> int:
        """Connections that the client closed without QUIT."""
        return self.violations["no-quit"] + self.violations["hung-up-in-body"]

    @cached_property
    def histograms(self) -> Mapping[str, Distribution]:
        """The histograms of `layout.HISTOGRAMS` by name."""
        return {row.name: self._histogram(row) for row in HISTOGRAMS}

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for `blackhole status --json` and the dashboard."""
        replies: dict[str, dict[str, int]] = {}
        for (phase, code), count in self.replies.items():
            replies.setdefault(phase, {})[str(code)] = count
        return {
            "seconds": self.seconds,
            "started": self.started,
            "messages": dict(self.messages),
            "recipients": self.recipients,
            "connections": {
                "total": sum(self.connections.values()),
                "open": self.open,
                "by_listener": dict(self.connections),
                "refused": self.refused,
                "timed_out": self.total("timed_out"),
                "hung_up": self.closed_without_quit,
                "probes": self.total("closed_without_command"),
            },
            "tls": {
                **{result: self.total(f"tls_{result}") for result in ("ok", "failed", "resumed")},
                **self.tls_as_dict(),
            },
            "received_bytes": self.total("received_bytes"),
            "commands": dict(self.commands),
            "replies": replies,
            "inspected": self.inspected_as_dict(),
            "violations": dict(self.counted_violations),
            "sampled_violations": {name: one.as_dict() for name, one in self.sampled_violations.items()},
            "retries": self.retries,
            "limits_met": self.limits_met,
            "store": self.store,
            "rule_hits": self.rule_hits,
            "rule_limits": self.rule_limits_as_dict(),
            "cpu_seconds": self.cpu,
            "histograms": {name: one.as_dict() for name, one in self.histograms.items()},
            "workers": [process._asdict() for process in self.processes],
        } | self.clients_as_dict()

    def tls_as_dict(self) -> dict[str, Any]:
        """Return why handshakes failed, and what clients did at the entries of the menu that they met."""
        return {
            "failures": {reason: count for reason, count in self.tls_failures.items() if count},
            "menu": {entry: results for entry, results in self.tls_menu.items() if any(results.values())},
        }

    def inspected_as_dict(self) -> dict[str, Any]:
        """Return how many sessions and messages were inspected, of how many, for JSON."""
        return {what: {"inspected": one.inspected, "of": one.of} for what, one in self.inspected.items()}

    def rule_limits_as_dict(self) -> dict[str, Any]:
        """Return what the limits of rules have decided, for JSON."""
        return {name: one._asdict() for name, one in self.rule_limits.items()}

    def clients_as_dict(self) -> dict[str, Any]:
        """Return the clients, and the domains, for JSON; neither without its log."""
        found = {"clients": self.clients, "domains": self.domains}
        return {key: [one._asdict() for one in some] for key, some in found.items() if some is not None}

    def _phase(self, phase: str) -> tuple[int, ...]:
        """Return the counts of all reply codes of a phase."""
        start = PHASES.index(phase) * CODES_PER_PHASE
        return self.cells[start : start + CODES_PER_PHASE]

    def _replies_of_class(self, phase: str, digit: int) -> int:
        """Return the number of replies of a phase that begin with a digit."""
        start = digit * 100 - FIRST_CODE
        return sum(self._phase(phase)[start : start + 100])

    def _histogram(self, row: Histogram) -> Distribution:
        start = HISTOGRAM_INDEX[row.name]
        *counts, total = self.cells[start : start + row.buckets + 1]
        return Distribution(tuple(counts), total * row.unit, row.unit, row.sampled)
