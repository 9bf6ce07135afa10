"""A fleet of many machines, simulated: what it costs the Redis server, and a dashboard that shows it.

    python -m benchmarks.fleet MACHINES [SECONDS]

One process writes for all machines, once a second each, to a redis-server of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from blackhole import __version__
from blackhole.fleet.member import FleetMember
from blackhole.fleet.store import FleetStore
from blackhole.metrics.counters import Counters
from blackhole.values import fleet
from tests.redis_server import RedisServer

CHANGING = (
    *(f"reply {phase} {code}" for phase, code in (("MAIL", 250), ("RCPT", 250), ("DATA", 354), (".", 250))),
    *("reply CONNECT 220", "reply EHLO 250", "reply QUIT 221", "listener 0.0.0.0:25"),
    *("counter received_bytes", "counter cpu_microseconds"),
    *(f"histogram service_seconds {bucket}" for bucket in (8, 9, 10, 11, "sum")),
    *(f"histogram client_think_seconds {bucket}" for bucket in (10, 11, 12, 13, "sum")),
    *(f"histogram message_bytes {bucket}" for bucket in (12, "sum")),
)
"""The fields that a busy machine changes within a second."""

STANDING = tuple(f"reply RCPT {code}" for code in range(400, 500))
"""Fields that a machine has counted before."""

SUMMARY = {
    "name": "sink-17.example.com",
    "version": __version__,
    "scenario": "loaded",
    "up": 86400.0,
    "messages": 10**9,
    "rate": 21000.0,
    "open": 500,
    "load": 0.8,
    "workers": 4,
    "order": 3,
}


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100


async def measure(server: RedisServer, machines: int, seconds: int) -> dict[str, float]:
    """Return the figures, by name."""
    store = FleetStore(fleet(f"redis://127.0.0.1:{server.port}/0"), "bench")
    summary = json.dumps(SUMMARY)

    async def write(number: int, turn: int) -> None:
        fields = dict.fromkeys(CHANGING, 1000 * (turn + 1))
        if not turn:
            fields |= dict.fromkeys(STANDING, 1)
        await store.write(f"sink-{number}:0123456789ab", fields, summary)

    async def write_all(turn: int) -> float:
        began = time.monotonic()
        for first in range(0, machines, 16):
            await asyncio.gather(*(write(number, turn) for number in range(first, min(machines, first + 16))))
        return time.monotonic() - began

    await write_all(0)
    before, began, late = cpu_seconds(server.process.pid), time.monotonic(), 0.0
    for turn in range(1, seconds + 1):
        took = await write_all(turn)
        late = max(late, took)
        await asyncio.sleep(max(0.0, 1 - took))
    elapsed = time.monotonic() - began
    used = cpu_seconds(server.process.pid) - before
    member = FleetMember(store, "reader:0", Counters(rows=1).snapshot, dict)
    began = time.process_time()
    view = await member.view()
    shown = time.process_time() - began
    assert view.snapshot.messages["accepted"] == machines * 1000 * (seconds + 1), "the sum is exact"
    memory = server.ask("INFO", "memory")
    await store.close()
    return {
        "machines": machines,
        "writes a second": machines * seconds / elapsed,
        "CPU of Redis": used / elapsed,
        "microseconds of Redis for a write": used / (machines * seconds) * 1e6,
        "KiB of Redis for a machine": memory["used_memory"] / machines / 1024,
        "milliseconds of CPU to read the fleet": shown * 1e3,
        "slowest turn in seconds": late,
    }


def main() -> None:
    """Measure, and print."""
    machines = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seconds = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    with RedisServer() as server:
        for name, value in asyncio.run(measure(server, machines, seconds)).items():
            print(f"{name:40} {value:10.3g}")


if __name__ == "__main__":
    main()
