"""Fairness: how long a second client waits for the reply to NOOP beside one that sends without pause."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

from benchmarks.failure import Failure
from benchmarks.machine import CORES, ROOT, SENDER_CORES, taskset
from benchmarks.paced_sender import percentiles
from benchmarks.pipelined_sender import connect
from benchmarks.plan import Plan
from benchmarks.sender import bundled_sender
from benchmarks.server import Running, Server, running_server
from benchmarks.table import Goal, Row, Table

COLUMNS = {
    "server": ("server", ""),
    "amount": ("taken", ",d"),
    "seconds": ("in s", ".1f"),
    "noops": ("NOOPs of the other", ",d"),
    "p50": ("p50 ms", ".2f"),
    "p99": ("p99 ms", ".2f"),
    "max": ("longest ms", ".1f"),
}
PAUSE = 0.002
TIMEOUT = 90.0


def time_noops(client: socket.socket, until: Callable[[], bool]) -> list[float]:
    """Send NOOP every few milliseconds, and return the seconds until each reply."""
    times: list[float] = []
    while not until() or not times:
        sent = time.perf_counter()
        client.sendall(b"NOOP\r\n")
        if not (reply := client.recv(512)).startswith(b"2"):
            raise Failure(f"the other client's NOOP: {reply!r}")
        times.append(time.perf_counter() - sent)
        time.sleep(PAUSE)
    return times


def probe_during(running: Running, command: list[str]) -> Row:
    """Time NOOPs while a greedy sender runs, on a connection that was opened before it."""
    with connect(running.port) as client:
        client.settimeout(TIMEOUT)
        # Both share a core: the greedy sender yields to this process.
        flood = subprocess.Popen(
            [*taskset(SENDER_CORES), "nice", "-n", "10", *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert flood.stdout is not None
            flood.stdout.readline()  # it has begun
            times = time_noops(client, lambda: flood.poll() is not None)
        except OSError as error:
            raise Failure(f"the other client: {error}") from None
        finally:
            flood.kill()
            out, said = flood.communicate(timeout=TIMEOUT)
        if flood.returncode:
            raise Failure(f"greedy sender: {' '.join(said.split())[-200:]}")
    row: Row = json.loads(out)
    return row | {key: value * 1000 for key, value in percentiles(times).items()} | {"noops": len(times)}


def beside_greedy_sender(kind: str, title: str, full: int, quick: int) -> Callable[[Plan], Table]:
    """Return the measurement beside one kind of greedy sender."""

    def measure(plan: Plan) -> Table:
        amount, seconds = (quick, 3.0) if plan.quick else (full, 60.0)

        def one(server: Server) -> Row:
            with running_server(server, plan.directory) as running:
                return probe_during(
                    running, bundled_sender("greedy_sender", kind, str(seconds))(running.port, amount)
                )

        os.sched_setaffinity(0, SENDER_CORES)
        try:
            table = Table(kind, title, COLUMNS, plan.each(plan.smtp_servers(), one))
        finally:
            with suppress(OSError):
                os.sched_setaffinity(0, CORES)
        for row in table.rows:
            if row["server"] == "blackhole" and "failure" not in row:
                table.goals.append(Goal(f"{title}: p99 of another's NOOP, ms", 20, row["p99"]))
        table.note = f"It ends after {seconds:.0f} s if not all was taken."
        return table

    return measure


NOOPS = beside_greedy_sender("noops", "Beside a million pipelined NOOPs", 1_000_000, 200_000)
DATA = beside_greedy_sender("data", "Beside 10 GiB of DATA (in MiB)", 10_240, 512)
