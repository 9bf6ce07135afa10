"""The reply time of one client while many others wait for a reply that a rule delays."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks import machine
from benchmarks.paced_sender import percentiles
from benchmarks.plan import Plan, record_failure
from benchmarks.scenarios import rule
from benchmarks.server import blackhole, running_server
from benchmarks.table import Goal, Row, Table

DELAYED: Final = rule("NOOP", "delay = 600", "250 2.0.0 ok")

COLUMNS: Final = {
    "waiting": ("clients that wait", ",d"),
    "p50": ("RSET p50, ms", ".3f"),
    "p99": ("p99, ms", ".3f"),
    "max": ("longest, ms", ".2f"),
}

REPLIES: Final = 5000
MAX_P99: Final = 20.0
"""Milliseconds."""


def reply_times(port: int, waiting: int) -> dict[str, float]:
    """Return the times, in milliseconds, of replies to one client while others wait."""
    with ExitStack() as clients:
        crowd = []
        for number in range(waiting):
            client = clients.enter_context(socket.socket())
            # One address has not enough ports to itself for sure.
            client.bind((f"127.0.0.{2 + number % 8}", 0))
            client.settimeout(30)
            client.connect(("127.0.0.1", port))
            client.sendall(b"NOOP\r\n")
            crowd.append(client)
        for client in crowd:
            client.recv(1000)
        with socket.create_connection(("127.0.0.1", port), 20) as fresh:
            fresh.recv(1000)
            times = []
            for _ in range(REPLIES):
                begun = time.perf_counter()
                fresh.sendall(b"RSET\r\n")
                fresh.recv(1000)
                times.append((time.perf_counter() - begun) * 1e3)
    return percentiles(times)


def measure(plan: Plan) -> Table:
    """Measure the reply times beside nobody and beside a crowd."""
    crowd = min(1_000 if plan.quick else 10_000, machine.open_files(machine.MAX_OPEN_FILES) - 500)
    file = Path(plan.directory) / "delayed.toml"
    file.write_text(DELAYED)
    table = Table("waiting", "Reply time beside clients whose reply a rule delays", COLUMNS)
    delayed = blackhole(f"delayed --max_connections {crowd + 100} --scenario {file}")
    for waiting in (0, crowd):
        row: Row = {"waiting": waiting}
        table.rows.append(row)
        with (
            record_failure(row),
            running_server(delayed, plan.directory) as one,
        ):
            row |= reply_times(one.port, waiting)
    if "p99" in table.rows[-1]:
        table.goals.append(Goal(f"RSET beside {crowd:,} delayed, p99, ms", MAX_P99, table.rows[-1]["p99"]))
    return table
