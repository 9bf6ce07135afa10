"""What a fleet costs each message: a server in a fleet and two without take turns.

    python -m benchmarks.fleet_cost [ROUNDS] [MESSAGES]

All run all the time; smtp-source sends to one after the other. The figures are the processor time of the
worker for a message, and that of the dashboard for a second. The second server without a fleet shows how much
two equal servers differ.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from tests.http_api import Sink
from tests.postfix import smtp_source
from tests.program import wait_for
from tests.redis_server import RedisServer


def worker_seconds(sink: Sink) -> float:
    """Return the processor time of the only worker, in nanoseconds of the scheduler."""
    (worker,) = sink.workers()
    return int(Path(f"/proc/{worker}/schedstat").read_text().split()[0]) / 1e9


def dashboard_seconds(sink: Sink) -> float:
    """Return the processor time of the dashboard."""
    (dashboard,) = sink.dashboards()
    return int(Path(f"/proc/{dashboard}/schedstat").read_text().split()[0]) / 1e9


def measure(sink: Sink, messages: int) -> float:
    """Send messages, and return the seconds of the worker for one of them."""
    before = worker_seconds(sink)
    subprocess.run(smtp_source(sink.address, messages, "-l", "2000", connections=4), check=True)
    wait_for(lambda: sink.snapshot().open == 0, "all connections are closed")
    return (worker_seconds(sink) - before) / messages


def main() -> None:
    """Measure, and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    messages = int(sys.argv[2]) if len(sys.argv) > 2 else 3000
    with RedisServer() as redis:
        fleet = f"--fleet=redis://127.0.0.1:{redis.port}/0"
        with Sink("--workers=1") as alone, Sink("--workers=1") as again, Sink("--workers=1", fleet) as member:
            sinks = alone, again, member
            for sink in sinks:
                sink.dashboard()
                measure(sink, messages)
            costs: dict[Sink, list[float]] = {sink: [] for sink in sinks}
            for number in range(rounds):
                for sink in sinks[number % 3 :] + sinks[: number % 3]:
                    costs[sink].append(measure(sink, messages))
            idle = {}
            for sink in alone, member:
                before, began = dashboard_seconds(sink), time.monotonic()
                time.sleep(10)
                idle[sink] = (dashboard_seconds(sink) - before) / (time.monotonic() - began)
    print(f"{rounds} rounds of {messages} messages")
    print(f"worker, microseconds for a message, alone  {median(costs[alone]) * 1e6:8.1f}")
    for name, sink in (("alone", again), ("in a fleet", member)):
        ratios = [one / other for one, other in zip(costs[sink], costs[alone], strict=True)]
        least = min(costs[sink]) / min(costs[alone])
        print(f"worker, {name} / alone: median {median(ratios):.3f}, least {least:.3f}")
    print(f"dashboard, ms of CPU in a second, alone    {idle[alone] * 1e3:8.2f}")
    print(f"dashboard, ms of CPU in a second, in fleet {idle[member] * 1e3:8.2f}")


if __name__ == "__main__":
    main()
