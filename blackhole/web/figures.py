"""The dashboard's figures: counters and what the ledger remembers of them, in the words of JSON."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

from blackhole import __version__
from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import CELL_INDEX
from blackhole.metrics.snapshot import Snapshot
from blackhole.settings import Settings
from blackhole.smtp.violations import VIOLATIONS
from blackhole.web.history import DAY, HOUR, SECOND, History, RingBuffer, Run, Sample, rate

MINUTE: Final = 60
"""Seconds that are looked back on, to say where the time goes."""

WORKER: Final = "blackhole: worker"
"""How the titles of the processes begin that serve mail."""

SMOOTH: Final = 5
"""Seconds that are looked back on, to say how busy a worker is: it counts its time once a second."""

SPANS: Final = (1, 10, 60)
"""Seconds over which rates are given."""

TIMES: Final = {"sink": "service_seconds", "client": "client_think_seconds", "delay": "delay_seconds"}
"""Where the time of a connection goes -> the histogram that tells."""


class StatsView:
    """What can be known, from the counters that workers write and the ledger that `sample` keeps."""

    def __init__(self, settings: Settings, stats: Counters, ledger: History) -> None:
        self._settings, self._stats, self.ledger = settings, stats, ledger
        self._past: Final[deque[Snapshot]] = deque(maxlen=MINUTE + 1)

    def read(self) -> Snapshot:
        """The counters as they are now."""
        return self._stats.snapshot()

    def sample(self) -> None:
        """Remember how things are; once a second."""
        snapshot = self.read()
        self._past.append(snapshot)
        self.ledger.note(moment(snapshot))

    def latest(self) -> Snapshot:
        """The counters as they were when last sampled."""
        return self._past[-1]

    def accepting(self) -> int:
        """How many workers take connections."""
        return self.read().cells[CELL_INDEX["accepting"]]

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time by row: a worker that dies leaves its row to the one in its place.

        By the worker's own number the count would fall when a reload gives it another row.
        """
        cells = {
            row: self._stats.cells(row)[CELL_INDEX["cpu_microseconds"]] for row in range(self._stats.rows)
        }
        return {str(row + 1): cpu / 1e6 for row, cpu in cells.items() if cpu}

    def at_start(self, run: Run) -> Snapshot:
        """The counters when a run began."""
        return self._ends(run, self.read())[0]

    # For JSON.

    def now(self, snapshot: Snapshot) -> dict[str, Any]:
        """All but the history."""
        figures = snapshot.as_dict()
        loads = self._loads()
        return {
            "version": __version__,
            "time": time.time(),
            "listeners": self._listeners(),
            "rates": self._rates(),
            **figures,
            "workers": [
                worker | {"load": loads.get(worker["pid"], 0.0)}
                for worker in figures["workers"]
                if worker["title"].startswith(WORKER)
            ],
            "minute": self._minute(),
            "runs": [self.summary(run, snapshot) for run in self.ledger.runs()],
        }

    def history(self) -> dict[str, Any]:
        """The last hour by seconds, and the last day by minutes; null where nobody looked."""
        until = moment(self.latest()).at
        return {
            "seconds": series(self.ledger.hour, until, HOUR),
            "minutes": series(self.ledger.day, until, DAY),
        }

    def rules(self) -> list[dict[str, Any]]:
        """What senders can do wrong."""
        return [rule._asdict() for rule in VIOLATIONS]

    def summary(self, run: Run, now: Snapshot) -> dict[str, Any]:
        """A run in few words."""
        first, last = self._ends(run, now)
        messages = sum(last.messages.values()) - sum(first.messages.values())
        mean = messages / last.seconds if last.seconds else 0.0
        cpu = last.cpu - first.cpu
        workers = self._settings.workers
        return {
            "name": run.name,
            "running": not run.ended,
            "started": run.at / 1e6,
            "seconds": last.seconds,
            "total": messages,
            "rate": {"mean": mean, "peak": max(run.peak, mean)},
            "cpu_share": cpu / last.seconds / workers if last.seconds else 0.0,
        }

    def report(self, run: Run) -> dict[str, Any]:
        """All that is known of a run."""
        now = self.read()
        summary = self.summary(run, now)
        report = summary | self.between(run, now).as_dict() | {key: summary[key] for key in ("started",)}
        report["connections"] |= {
            "peak": max(run.crowd, run.waited and 1),
            "mean": run.waited / SECOND / summary["seconds"] if summary["seconds"] else 0.0,
        }
        return report

    def between(self, run: Run, now: Snapshot) -> Snapshot:
        """What happened in a run."""
        first, last = self._ends(run, now)
        return last - first

    def _ends(self, run: Run, now: Snapshot) -> tuple[Snapshot, Snapshot]:
        """The counters at the start, at 0 seconds, and at the end of a run, or now."""

        def snapshot(at: int, cells: Any) -> Snapshot:
            seconds = (at - run.began) / SECOND
            return Snapshot(seconds, now.started, now.listeners, now.workers, now.rule_counters, cells)

        if run.ended:
            last = snapshot(run.ended, run.last)
        else:
            last = snapshot(round(now.seconds * SECOND), now.cells)
        return snapshot(run.began, run.first), last

    def _listeners(self) -> list[dict[str, Any]]:
        return [
            {"address": str(one), "mode": one.mode, "delay": one.delay, "tls": one.tls}
            for one in self._settings.listeners
        ]

    def _rates(self) -> dict[str, Any]:
        last = moment(self.latest())
        rates: dict[str, Any] = {}
        for name in ("messages", "connections", "received_bytes"):
            rates[name] = {str(span): self.ledger.pace(last, span, name) for span in SPANS}
        rates["messages"]["peak"] = self.ledger.peak
        rates["open"] = {"peak": self.ledger.crowd}
        return rates

    def _loads(self) -> dict[int, float]:
        """By process: which share of a processor it took lately."""
        last = self._past[-1]
        first = self._past[max(0, len(self._past) - 1 - SMOOTH)]
        before = {worker.pid: worker.cpu for worker in first.workers}
        elapsed = last.seconds - first.seconds
        return {
            worker.pid: (worker.cpu - before[worker.pid]) / elapsed if elapsed else 0.0
            for worker in last.workers
            if worker.pid in before
        }

    def _minute(self) -> dict[str, Any]:
        """Where the time went in the last minute. All but delays is measured now and then, so the sums
        are estimates: as if each reply had been measured, and each had been given alone."""
        lately = self._past[-1] - self._past[0]
        found = {name: lately.histograms[cells] for name, cells in TIMES.items()}
        replies = sum(lately.replies.values())
        return {
            "seconds": lately.seconds,
            **{
                name: {
                    "sum": one.sum if name == "delay" else one.mean * replies,
                    "count": one.count,
                    "p50": one.quantile(0.5),
                    "p99": one.quantile(0.99),
                }
                for name, one in found.items()
            },
        }


def moment(snapshot: Snapshot) -> Sample:
    """What the ledger keeps of a snapshot."""
    return Sample(
        round(snapshot.seconds * SECOND),
        sum(snapshot.messages.values()),
        sum(snapshot.connections.values()),
        snapshot.total("received_bytes"),
        snapshot.open,
    )


def series(ring: RingBuffer, until: int, slots: int) -> dict[str, Any]:
    """A ring, as columns, the oldest first; `until` is the moment of the last column."""
    columns: dict[str, list[float | None]] = {"messages": [], "connections": [], "received_bytes": []}
    crowd: list[int | None] = []
    for before, after in ring.steps(until):
        crowd.append(after.open if after else None)
        for name, column in columns.items():
            column.append(round(rate(before, after, name), 2) if before and after else None)
    return {"step": ring.step / SECOND, "until": time.time(), **columns, "open": crowd}
