"""Memory of idle connections."""

from __future__ import annotations

from benchmarks import machine, process
from benchmarks.idle_clients import idle_connections
from benchmarks.plan import Plan
from benchmarks.server import Server, running_server
from benchmarks.table import Goal, Row, Table

COLUMNS = {
    "server": ("server", ""),
    "base": ("base RSS, KiB", ",d"),
    "full": ("full RSS, KiB", ",d"),
    "each": ("RSS each, KiB", ".2f"),
    "each_pss": ("own (PSS) each, KiB", ".2f"),
}


def measure(plan: Plan) -> Table:
    """Measure the memory of each server without and with idle connections."""
    size = min(1_000 if plan.quick else 10_000, machine.open_files(machine.MAX_OPEN_FILES) - 500)

    def one(server: Server) -> Row:
        with running_server(server, plan.directory) as running:
            with idle_connections(running.port, 100):
                pass  # one-time allocations, and memory that the allocator keeps, are not counted
            base, base_pss = process.resident(running.pids()), process.proportional(running.pids())
            with idle_connections(running.port, size):
                full, full_pss = process.resident(running.pids()), process.proportional(running.pids())
        return {
            "base": base,
            "full": full,
            "each": (full - base) / size,
            "each_pss": (full_pss - base_pss) / size,
        }

    table = Table(
        "idle", f"{size:,} idle connections, after EHLO", COLUMNS, plan.each(plan.smtp_servers(), one)
    )
    for row in table.rows:
        if row["server"] == "blackhole" and "failure" not in row:
            table.goals.append(Goal("RSS of an idle connection, KiB", 3, row["each"]))
    return table
