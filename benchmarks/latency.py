"""Latency: reply time at half of the maximum rate of a server."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks import sender
from benchmarks.comparison import run_load
from benchmarks.plan import Plan
from benchmarks.server import Server, running_server
from benchmarks.table import Row, Table

COLUMNS = {
    "server": ("server", ""),
    "max_rate": ("maximum messages/s", ",.0f"),
    "rate": ("sent messages/s", ",.0f"),
    "p50": ("reply p50 µs", ",.0f"),
    "p99": ("reply p99 µs", ",.0f"),
    "message_p99": ("message p99 µs", ",.0f"),
}
FULL = sender.smtp_source("-s", "50", "-d")


def measure(plan: Plan) -> Table:
    """Measure the reply times of each server at half of its maximum rate."""

    def one(server: Server) -> Row:
        found: list[dict[str, Any]] = []
        max_rates: list[float] = []
        with running_server(server, plan.directory) as running:
            warm = run_load(running, FULL, 500)
            for _ in range(plan.rounds):
                full = run_load(running, FULL, max(500, round(plan.seconds / warm.cost)))
                max_rates.append(full.messages / full.seconds)
                rate = max_rates[-1] / 2
                messages = max(100, round(rate * plan.seconds))
                found.append(
                    sender.run_json(
                        sender.bundled_sender("paced_sender", f"{rate:.1f}")(running.port, messages)
                    )
                )
        return {
            "max_rate": median(max_rates),
            "rate": median(run["rate"] for run in found),
            "p50": median(run["replies"]["p50"] for run in found) * 1e6,
            "p99": median(run["replies"]["p99"] for run in found) * 1e6,
            "message_p99": median(run["messages"]["p99"] for run in found) * 1e6,
            "runs": found,
        }

    return Table(
        "latency",
        "Reply time at half of the maximum rate",
        COLUMNS,
        plan.each(plan.with_listener(), one),
        note=(
            "The maximum is that of `smtp-source -s 50 -d`. A reply is timed from the write of its command, "
            "a message from the moment it was due to its last reply. Where fewer were sent than half of the "
            "maximum, the sender could not keep up."
        ),
    )
