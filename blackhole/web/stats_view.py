"""What the HTTP API shows of the counters and their history, in the words of its JSON."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any, Final

from blackhole import __version__
from blackhole.metrics.counters import Counters
from blackhole.metrics.findings import findings
from blackhole.metrics.layout import CELL_INDEX
from blackhole.metrics.snapshot import DISPOSITIONS, Snapshot
from blackhole.settings import Settings
from blackhole.smtp.violations import VIOLATIONS
from blackhole.web.history import SECOND, History, RingBuffer, Run, Sample, rate

WORKER_TITLE_START: Final = "blackhole: worker"
"""How the titles of worker processes begin."""

BREAKDOWN_SECONDS: Final = 60
"""The time for which `minute` shows where the time of connections went."""

LOAD_SECONDS: Final = 5
"""The time over which the load of a worker is averaged: it counts its processor time once a second."""

RATE_SECONDS: Final = (1, 10, 60)
"""The times over which rates are averaged."""

MACHINE_RATE_SECONDS: Final = 10
"""Seconds over which the rate of a machine in a fleet is averaged."""

BREAKDOWN: Final = {"sink": "service_seconds", "client": "client_think_seconds", "delay": "delay_seconds"}
"""Part of the time of a connection -> the histogram that measures it."""

OUTCOMES: Final = tuple(DISPOSITIONS.values())
"""Outcomes of a message: accepted, deferred, rejected, as the fields of a sample."""

RATE_NAMES: Final = ("messages", *OUTCOMES, "connections", "received_bytes")
"""The rates that are shown, and of which there is a history."""

MAX_AGE: Final = 0.02
"""Seconds for which `recent` returns the same snapshot."""


class StatsView:
    """A view of the counters, which workers write, and of the history, which `sample` writes.

    `scenario` returns the state of the scenario in force.
    """

    def __init__(
        self, settings: Settings, counters: Counters, history: History, scenario: Callable[[], dict[str, Any]]
    ) -> None:
        self._settings, self._counters, self.history = settings, counters, history
        self.scenario: Final = scenario
        """Returns the state of the scenario in force."""
        self._minute: Final[deque[Snapshot]] = deque(maxlen=BREAKDOWN_SECONDS + 1)
        self._recent = self.snapshot()
        self._past: tuple[Snapshot | None, str] = None, ""
        """A sample, and the history up to it as JSON."""

    # Snapshots

    def snapshot(self) -> Snapshot:
        """Return the counters."""
        return self._counters.snapshot()

    def recent(self) -> Snapshot:
        """Return the counters as they were at most MAX_AGE ago, which costs less for many who ask."""
        if time.monotonic() - self._recent.at >= MAX_AGE:
            self._recent = self.snapshot()
        return self._recent

    def sample(self) -> None:
        """Add the counters to the history; to be called once a second."""
        snapshot = self.snapshot()
        self._minute.append(snapshot)
        self.history.add(sample_of(snapshot))

    def last_sample(self) -> Snapshot:
        """Return the counters of the last call of `sample`."""
        return self._minute[-1]

    def accepting_workers(self) -> int:
        """Return the number of workers that accept connections."""
        return self.snapshot().cells[CELL_INDEX["accepting"]]

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time by row of the counters, from "1".

        The worker that replaces another one keeps its row. By number of the worker, the time would
        decrease when a reload gives it another row.
        """
        cell = CELL_INDEX["cpu_microseconds"]
        times = {row: self._counters.cells(row)[cell] for row in range(self._counters.rows)}
        return {str(row + 1): cpu / 1e6 for row, cpu in times.items() if cpu}

    # Runs

    def at_start(self, run: Run) -> Snapshot:
        """Return the counters at the start of a run."""
        return self._start_and_end(run, self.snapshot())[0]

    def between(self, run: Run, now: Snapshot) -> Snapshot:
        """Return what happened in a run until its end, or until now."""
        first, last = self._start_and_end(run, now)
        start = run.started / 1e6
        period = (start, start + last.seconds if run.ended else inf)
        return replace(last - first, evidence_log=now.evidence_log, period=period)

    def _start_and_end(self, run: Run, now: Snapshot) -> tuple[Snapshot, Snapshot]:
        """Return the counters at the start of a run, at 0 seconds, and at its end or now."""

        def snapshot(at: int, cells: Any) -> Snapshot:
            seconds = (at - run.began) / SECOND
            return replace(
                Snapshot(seconds, now.started, now.listeners, now.processes, now.rule_counters, cells),
                rule_limit_texts=now.rule_limit_texts,
            )

        last = snapshot(run.ended, run.last) if run.ended else snapshot(round(now.at * SECOND), now.cells)
        return snapshot(run.began, run.first), last

    def run_summary(self, run: Run, now: Snapshot) -> dict[str, Any]:
        """Return the main figures of a run."""
        first, last = self._start_and_end(run, now)
        messages = sum(last.messages.values()) - sum(first.messages.values())
        mean = messages / last.seconds if last.seconds else 0.0
        cpu = last.cpu - first.cpu
        workers = self._settings.workers
        return {
            "name": run.name,
            "running": not run.ended,
            "started": run.started / 1e6,
            "seconds": last.seconds,
            "total": messages,
            "rate": {"mean": mean, "peak": max(run.peak, mean)},
            "cpu_share": cpu / last.seconds / workers if last.seconds else 0.0,
        }

    def run_report(self, run: Run) -> dict[str, Any]:
        """Return all figures of a run."""
        now = self.snapshot()
        summary = self.run_summary(run, now)
        report = summary | self.between(run, now).as_dict() | {"started": summary["started"]}
        seconds = summary["seconds"]
        report["connections"] |= {
            "peak": max(run.peak_connections, run.connection_time and 1),
            "mean": run.connection_time / SECOND / seconds if seconds else 0.0,
        }
        return report

    # A fleet

    def machine(self) -> dict[str, Any]:
        """Return what the other machines of a fleet are shown of this one."""
        snapshot = self.recent()
        last, scenario = sample_of(self.last_sample()), self.scenario()
        return {
            "name": self._settings.hostname,
            "version": __version__,
            "scenario": scenario["name"],
            "digest": scenario["digest"],
            "up": snapshot.seconds,
            "messages": sum(snapshot.messages.values()),
            "rate": self.history.rate(last, MACHINE_RATE_SECONDS),
            "open": snapshot.open,
            "load": max(self._loads().values(), default=0.0),
            "workers": snapshot.cells[CELL_INDEX["accepting"]],
        }

    # /stats.json and /events

    def current(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return all figures but the history."""
        figures = snapshot.as_dict()
        loads = self._loads()
        return {
            "version": __version__,
            "time": time.time(),
            "listeners": self._listeners(),
            "rates": self._rates(),
            **figures,
            "findings": [finding.as_dict() for finding in findings(snapshot)],
            "workers": [
                worker | {"load": loads.get(worker["pid"], 0.0)}
                for worker in figures["workers"]
                if worker["title"].startswith(WORKER_TITLE_START)
            ],
            "minute": self._breakdown(),
            "runs": [self.run_summary(run, snapshot) for run in self.history.runs()],
            "scenario": self.scenario(),
        }

    def past(self) -> dict[str, Any]:
        """Return the last hour by seconds and the last day by minutes, with null where nothing is known."""
        until = sample_of(self.last_sample()).at
        return {
            "seconds": columns(self.history.hour, until),
            "minutes": columns(self.history.day, until),
        }

    def past_json(self) -> str:
        """Return `past` as JSON. It is made once for each sample, as it takes 30 ms."""
        sample = self.last_sample()
        if self._past[0] is not sample:
            self._past = sample, json.dumps(self.past(), separators=(",", ":"))
        return self._past[1]

    @property
    def kept_transactions(self) -> int:
        """How many of the last transactions are kept; 0 if none is recorded."""
        return self._settings.recent

    @property
    def fleet(self) -> dict[str, Any] | None:
        """The name of the fleet, and whether this machine obeys its orders; None without one."""
        settings = self._settings
        if not settings.fleet.host:
            return None
        return {"name": settings.fleet_name, "control": settings.fleet_control}

    @staticmethod
    def violation_rules() -> list[dict[str, Any]]:
        """Return the rules of the RFCs that a sender can violate."""
        return [rule._asdict() for rule in VIOLATIONS]

    def _listeners(self) -> list[dict[str, Any]]:
        return [
            {
                "address": str(one),
                "mode": one.mode,
                "delay": one.delay,
                "tls": one.tls,
                "service": "lmtp" if one.lmtp else "smtp",
                "hostname": self._settings.of_listener(one).hostname,
            }
            for one in self._settings.listeners
        ]

    def _rates(self) -> dict[str, Any]:
        last = sample_of(self.last_sample())
        rates: dict[str, Any] = {}
        for name in RATE_NAMES:
            rates[name] = {str(seconds): self.history.rate(last, seconds, name) for seconds in RATE_SECONDS}
        rates["messages"]["peak"] = self.history.peak
        rates["open"] = {"peak": self.history.peak_connections}
        return rates

    def _loads(self) -> dict[int, float]:
        """Return, by process, the share of one processor that it used in the last LOAD_SECONDS."""
        last = self._minute[-1]
        first = self._minute[max(0, len(self._minute) - 1 - LOAD_SECONDS)]
        before = {process.pid: process.cpu for process in first.processes}
        elapsed = last.at - first.at
        return {
            worker.pid: (worker.cpu - before[worker.pid]) / elapsed if elapsed else 0.0
            for worker in last.processes
            if worker.pid in before
        }

    def _breakdown(self) -> dict[str, Any]:
        """Return where the time of connections went in the last minute.

        All but delays is measured for a sample of the replies. The sums are estimates, as if each reply
        had been measured and sent alone.
        """
        minute = self._minute[-1] - self._minute[0]
        found = {part: minute.histograms[name] for part, name in BREAKDOWN.items()}
        replies = sum(minute.replies.values())
        return {
            "seconds": minute.seconds,
            **{
                part: {
                    "sum": one.sum if part == "delay" else one.mean * replies,
                    "count": one.count,
                    "sampled": one.sampled,
                    "p50": one.quantile(0.5),
                    "p99": one.quantile(0.99),
                }
                for part, one in found.items()
            },
        }


def sample_of(snapshot: Snapshot) -> Sample:
    """Return what the history keeps of a snapshot."""
    messages = snapshot.messages
    return Sample(
        round(snapshot.at * SECOND),
        messages["accepted"],
        messages["deferred"],
        messages["rejected"],
        sum(snapshot.connections.values()),
        snapshot.total("received_bytes"),
        snapshot.open,
    )


def columns(ring: RingBuffer, until: int) -> dict[str, Any]:
    """Return a ring as columns of rates, the oldest first; `until` is the time of the last value."""
    rates: dict[str, list[float | None]] = {name: [] for name in RATE_NAMES}
    open_connections: list[int | None] = []
    for before, after in ring.steps(until):
        open_connections.append(after.open if after else None)
        for name, column in rates.items():
            column.append(round(rate(before, after, name), 2) if before and after else None)
    return {"step": ring.step / SECOND, "until": time.time(), **rates, "open": open_connections}
