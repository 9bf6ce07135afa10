"""Startup: time from the start of a server to its first greeting."""

from __future__ import annotations

from statistics import median

from benchmarks import machine
from benchmarks.plan import Plan
from benchmarks.server import Server, running_server
from benchmarks.table import Goal, Row, Table

WORKERS = 4
COLUMNS = {
    "server": ("server", ""),
    "median": ("median ms", ",.0f"),
    "max": ("longest ms", ",.0f"),
}


def measure(plan: Plan) -> Table:
    """Measure the time of each server from its start to its first greeting."""

    def one(server: Server) -> Row:
        milliseconds = []
        for _ in range(max(plan.rounds, 3)):
            with running_server(server, plan.directory, WORKERS, cores=machine.CORES) as running:
                milliseconds.append(running.start_seconds * 1000)
        return {"median": median(milliseconds), "max": max(milliseconds), "ms": milliseconds}

    table = Table(
        "start",
        "Start to first greeting, four workers",
        COLUMNS,
        plan.each(plan.smtp_servers(), one),
        note="smtp-sink and aiosmtpd are one process; blackhole 2 has as many workers as there are cores.",
    )
    for row in table.rows:
        if row["server"] == "blackhole" and "failure" not in row:
            table.goals.append(Goal("Start to first greeting, ms", 300, row["median"]))
    return table
