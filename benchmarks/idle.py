"""Memory of connections that were greeted and say nothing."""

from __future__ import annotations

from benchmarks import machine, process
from benchmarks.crowd import crowd
from benchmarks.plan import Plan
from benchmarks.server import Server, started
from benchmarks.table import Goal, Row, Table

COLUMNS = {
    "server": ("server", ""),
    "base": ("base RSS, KiB", ",d"),
    "full": ("full RSS, KiB", ",d"),
    "each": ("RSS each, KiB", ".2f"),
    "each_pss": ("own (PSS) each, KiB", ".2f"),
}


def measure(plan: Plan) -> Table:
    size = min(1_000 if plan.quick else 10_000, machine.open_files(machine.FILES) - 500)

    def one(server: Server) -> Row:
        with started(server, plan.directory) as running:
            with crowd(running.port, 100):
                pass  # what is made once, and what the allocator keeps, is not what a connection costs
            base, base_pss = process.resident(running.pids()), process.proportional(running.pids())
            with crowd(running.port, size):
                full, full_pss = process.resident(running.pids()), process.proportional(running.pids())
        return {
            "base": base,
            "full": full,
            "each": (full - base) / size,
            "each_pss": (full_pss - base_pss) / size,
        }

    table = Table("idle", f"{size:,} idle connections, after EHLO", COLUMNS, plan.each(plan.usable(), one))
    for row in table.rows:
        if row["server"] == "blackhole" and "failure" not in row:
            table.goals.append(Goal("RSS of an idle connection, KiB", 3, row["each"]))
    return table
