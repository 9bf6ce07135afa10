"""Spread: how evenly connections are distributed over the workers."""

from __future__ import annotations

from benchmarks import machine, process
from benchmarks.idle_clients import idle_connections
from benchmarks.plan import Plan, record_failure
from benchmarks.server import running_server
from benchmarks.table import Goal, Row, Table

CONNECTIONS = 200
COLUMNS = {
    "server": ("server", ""),
    "workers": ("workers", "d"),
    "arrival": ("arrival", ""),
    "by_worker": ("connections per worker", ""),
    "uneven": ("largest deviation", ".0%"),
}


def measure(plan: Plan) -> Table:
    """Measure how many connections each worker holds."""
    table = Table("spread", f"{CONNECTIONS} connections over the workers", COLUMNS)
    for server in (server for server in plan.servers if server.is_blackhole):
        for workers in (2, 4):
            for arrival, wave in (("one by one", 1), ("at once", CONNECTIONS)):
                row: Row = {"server": server.name, "workers": workers, "arrival": arrival}
                table.rows.append(row)
                with (
                    record_failure(row),
                    running_server(server, plan.directory, workers, cores=machine.CORES) as running,
                ):
                    before = {pid: process.sockets(pid) for pid in running.pids()}
                    with idle_connections(running.port, CONNECTIONS, wave):
                        held = [process.sockets(pid) - count for pid, count in before.items()]
                    even = CONNECTIONS / workers
                    held = sorted(held, reverse=True)[:workers]  # the master holds none
                    row["held"], row["by_worker"] = held, " ".join(map(str, held))
                    row["uneven"] = max(abs(count - even) for count in held) / even
                    if server.name == "blackhole":
                        table.goals.append(
                            Goal(f"Spread, {workers} workers, {arrival}, off even", 0.2, row["uneven"])
                        )
    return table
