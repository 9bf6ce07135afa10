"""How soon a retry at another machine of a fleet is seen, and what that costs.

    python -m benchmarks.fleet_retries

Two machines share a redis-server. A client is deferred by one of them, waits, and retries at the other: first
when nothing else is deferred, and then while another client is deferred 200 times a second.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Final

from tests.http_api import Sink, figures
from tests.program import scenario_option
from tests.redis_server import RedisServer
from tests.resource_usage import cpu_seconds
from tests.smtp_client import SMTPClient

RULE: Final = "[[rule]]\nphase = 'RCPT'\nreply = '450 4.2.1 Later'\n"

DELAYS: Final = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Seconds from the reply to the retry."""

RETRIES: Final = 20
"""Retries after each delay."""

QUIET: Final = 0.25
"""Seconds after which nothing more is sent of what came before."""

numbers = count()


def attempt(client: SMTPClient, sender: str) -> None:
    """Have a recipient deferred."""
    client.command_code(f"MAIL FROM:<{sender}>")
    code = client.command_code("RCPT TO:<bob@example.com>")
    assert code == "450", code
    client.command_code("RSET")


@contextmanager
def others_deferred(client: SMTPClient) -> Iterator[None]:
    """Have another client deferred 200 times a second meanwhile."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(0.005):
            attempt(client, f"other{next(numbers)}@example.com")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure(first: SMTPClient, second: SMTPClient, sink: Sink, pause: float) -> None:
    """Print how many retries are seen after each delay."""
    for delay in DELAYS:
        before = figures(sink.http)["retries"]["deferred"]["returned"]
        for _ in range(RETRIES):
            sender = f"ann{next(numbers)}@example.com"
            attempt(first, sender)
            time.sleep(delay)
            attempt(second, sender)
            time.sleep(pause)
        time.sleep(QUIET)
        seen = figures(sink.http)["retries"]["deferred"]["returned"] - before
        print(f"  after {delay * 1000:3.0f} ms: {seen} of {RETRIES}")


def main() -> None:
    """Run both cases."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = stack.enter_context(RedisServer())
        options = scenario_option(folder, RULE), f"--fleet={redis.url()}", "--workers=1"
        one, two = (stack.enter_context(Sink(*options)) for _ in range(2))
        processes = {"dashboard of the other": two.dashboard(), "redis": redis.process.pid}
        one.dashboard()
        clients = [stack.enter_context(SMTPClient(("127.0.0.1", sink.port))) for sink in (one, two, one)]
        time.sleep(2)  # they share a secret
        print("nothing else is deferred")
        measure(clients[0], clients[1], two, QUIET)
        print("200 others are deferred per second")
        with others_deferred(clients[2]):
            measure(clients[0], clients[1], two, 0.037)
            began, before = time.monotonic(), {name: cpu_seconds(pid) for name, pid in processes.items()}
            time.sleep(5)
            seconds = time.monotonic() - began
            for name, pid in processes.items():
                print(f"  processor of {name}: {(cpu_seconds(pid) - before[name]) / seconds:.1%}")


if __name__ == "__main__":
    main()
