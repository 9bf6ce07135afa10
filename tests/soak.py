"""The soak: good and bad clients together for a long time; what grows, and whether the counters are exact.

`python -m tests.soak [--minutes 10]`. For ten seconds smtp-source sends as fast as it can. Half of that rate
is the load during the soak. Beside it good clients send messages at a steady rate, plain, pipelined and under
STARTTLS, and count how many were accepted. Bad clients reset, stall, never read, send random octets, or break
off inside a message. None of them ends a message, so the server's counters must agree with those of the good
clients to the last message.

Growth of memory is the slope of a straight line through samples, after a warm-up. A sample is the anonymous
memory of a process, with the pages that it still shares with the master it was forked from. So the copying of
such a page does not count as growth: there is a limited number of them. How many were copied is printed
separately, and so is the memory that all processes share, which has a fixed size.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.certificates import issue
from tests.postfix import smtp_source
from tests.program import Program, descriptors, free_port, title
from tests.resource_usage import cpu_seconds, master_and_workers, memory
from tests.smtp_client import Address, SMTPClient, UnexpectedReply, reset_on_close

MAX_GROWTH_AN_HOUR = 1024
"""KiB by which all processes together may grow in an hour; a short run cannot tell."""

WARM_UP = 600.0
"""Seconds before memory is sampled: half of a shorter run, a fifth of a run of over 50 minutes."""

SMTP_SOURCE_OPTIONS = (), ("-d",)
"""A connection for each message, and several messages on a connection."""


class ClientThreads:
    """Threads that run clients for a time, and what they count."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.accepted = 0
        """The number of messages that the server has accepted."""
        self.runs = 0
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, threads: int, rate: float, client: Callable[[Random], int]) -> None:
        """Run a client `rate` times a second in this many threads; it returns the messages accepted."""
        for _ in range(threads):
            thread = threading.Thread(target=self._run, args=(threads / rate, client), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self, interval: float, client: Callable[[Random], int]) -> None:
        source = Random(threading.get_ident())
        while (now := time.monotonic()) < self.until:
            failure, accepted = "", 0
            try:
                accepted = client(source)
            except (OSError, UnexpectedReply, subprocess.SubprocessError) as error:
                failure = repr(error)
            with self._lock:
                self.runs += 1
                self.accepted += accepted
                if failure:
                    self.failures.append(failure)
            time.sleep(max(0.0, now + interval - time.monotonic()))

    def join(self) -> None:
        """Wait until the last client has finished."""
        for thread in self._threads:
            thread.join(60)


def good_client(address: Address) -> Callable[[Random], int]:
    """Return a client that sends one to four messages on a connection, a fifth of them under STARTTLS."""

    def run(source: Random) -> int:
        with SMTPClient(address) as client:
            client.command("EHLO good.test")
            if source.random() < 0.2:
                client.starttls()
                client.command("EHLO good.test")
            messages = int(source.random() * 4) + 1
            for _ in range(messages):
                body = b"Subject: soak\r\n\r\n" + b"x" * 70 * int(source.random() * 400) + b"\r\n"
                expect(client.send_message(body), "250 2.0.0 OK: queued")
            expect(client.command("QUIT"), "221")
            return messages

    return run


def expect(reply: str, start: str) -> None:
    """Raise UnexpectedReply unless a reply starts with this."""
    if not reply.startswith(start):
        raise UnexpectedReply(f"expected {start}, got {reply!r}")


BAD_INPUT = (
    b"", b"EHLO bad.test\r\n", b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nhalf a mess",
    b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"STARTTLS\r\n\x16\x03", b"\0\xff\r\n" * 9,
    b"XYZZY\r\n" * 50, b"x" * 70_000, b"NOOP\r\n" * 3000,
)  # fmt: skip


def bad_client(address: Address) -> Callable[[Random], int]:
    """Return a client that sends something and mostly disconnects as no client should."""

    def run(source: Random) -> int:
        with suppress(OSError), socket.create_connection(address, 10) as client:
            client.settimeout(3)
            data = BAD_INPUT[int(source.random() * len(BAD_INPUT))]
            cut = int(source.random() * (len(data) + 1)) if source.random() < 0.3 else len(data)
            client.sendall(data[:cut])
            if source.random() < 0.2:
                time.sleep(source.random() * 8)
            if source.random() < 0.5:
                reset_on_close(client)
        return 0

    return run


def bulk_sender(address: Address, rate: int) -> Callable[[Random], int]:
    """Return a client that has smtp-source send `rate` messages."""

    def run(source: Random) -> int:
        options = SMTP_SOURCE_OPTIONS[source.random() < 0.5]
        subprocess.run(smtp_source(address, rate, *options), check=True, capture_output=True, timeout=60)
        return rate

    return run


def measure_capacity(address: Address, seconds: float = 10.0) -> tuple[float, int]:
    """Return the messages a second that smtp-source can send, and how many it has sent."""
    began, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < seconds:
        for options in SMTP_SOURCE_OPTIONS:
            subprocess.run(smtp_source(address, 2000, *options), check=True, capture_output=True, timeout=60)
            sent += 2000
    return sent / elapsed, sent


def slope(samples: list[tuple[float, float]]) -> float:
    """Return the growth in KiB an hour."""
    times, values = zip(*samples, strict=True)
    return float(statistics.linear_regression(times, values).slope * 3600)


class Usage:
    """Samples of the memory and the descriptors of a master and its workers."""

    def __init__(self) -> None:
        self.anonymous: dict[str, list[tuple[float, float]]] = {}
        """The KiB of each process, and of all together."""
        self.uncopied: list[float] = []
        """The KiB that copies of the pages shared since the fork would take."""
        self.shared: list[float] = []
        """The KiB of the memory that all processes share."""
        self.descriptors: list[int] = []

    def sample(self, pid: int) -> None:
        """Add a sample of a master and its workers."""
        now, pids = time.monotonic(), master_and_workers(pid)
        sizes = {title(process) or "master": memory(process) for process in pids}
        anonymous = {name: float(size["Anonymous"]) for name, size in sizes.items()}
        for name, kib in (anonymous | {"all": sum(anonymous.values())}).items():
            self.anonymous.setdefault(name, []).append((now, kib))
        self.uncopied.append(sum(size["Anonymous"] - size["Pss_Anon"] for size in sizes.values()))
        self.shared.append(sum(size["Pss_Shmem"] for size in sizes.values()))
        self.descriptors.append(sum(len(descriptors(process)) for process in pids))

    def __str__(self) -> str:
        lines = [
            f"memory of {name}: {samples[0][1]:.0f} KiB at the start, {samples[-1][1]:.0f} at the end, "
            f"slope {slope(samples):+.0f} KiB/h"
            for name, samples in self.anonymous.items()
        ]
        lines += [
            f"pages shared since the fork and not yet copied: {self.uncopied[0]:.0f} KiB at the start, "
            f"{self.uncopied[-1]:.0f} at the end",
            f"shared memory: {self.shared[0]:.0f} KiB at the start, {self.shared[-1]:.0f} at the end",
            f"descriptors: {min(self.descriptors)} to {max(self.descriptors)}",
        ]
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Serve good and bad clients for a long time."
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--bulk", type=int, help="messages a second of smtp-source (default: half of what the machine takes)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        help="connections of good clients a second (default: 10 and 2 %% of --bulk)",
    )
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    load_at_start = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        tls = f"--ssl_port={free_port()}", *issue(Path(folder)).options
        timeouts = "--timeout=20", "--tls_timeout=10", "--write_timeout=10"
        with Program("--workers=2", *timeouts, *tls) as program:
            program.wait_until_accepting(2)
            sent_before, bulk = 0, arguments.bulk
            if bulk is None:
                capacity, sent_before = measure_capacity(program.address)
                bulk = int(capacity / 2)
                print(f"the machine takes {capacity:.0f} messages a second of smtp-source; {bulk} are sent")
            rate = arguments.rate or 10 + bulk / 50
            print(f"and {rate:.0f} connections a second of good clients, as many of bad clients", flush=True)
            good, bad = ClientThreads(seconds), ClientThreads(seconds)
            good.start(4, rate, good_client(program.address))
            bad.start(6, rate, bad_client(program.address))
            if bulk:
                good.start(1, 1, bulk_sender(program.address, bulk))
            usage = Usage()
            workers, began = program.workers(), time.monotonic()
            cpu_before = cpu_seconds(*master_and_workers(program.pid))
            warm = began + min(seconds / 2, max(seconds / 5, WARM_UP))
            while (now := time.monotonic()) < good.until:
                if now > warm:
                    usage.sample(program.pid)
                time.sleep(min(5, seconds / 40))
            good.join()
            bad.join()
            elapsed = time.monotonic() - began
            cpu = 100 * (cpu_seconds(*master_and_workers(program.pid)) - cpu_before) / elapsed
            program.wait_until_idle(90)
            descriptors_left = sum(len(descriptors(pid)) for pid in master_and_workers(program.pid))
            counted = program.snapshot().messages["accepted"]
            tracebacks = program.output().count("Traceback")
            same_workers = program.workers() == workers
            status = program.stop()
    miscounted = counted - good.accepted - sent_before
    print(f"{elapsed / 60:.1f} minutes, load of the machine {load_at_start:.1f} to {os.getloadavg()[0]:.1f}")
    print(
        f"good clients: {good.runs} connections and runs of smtp-source, {good.accepted} messages, "
        f"{good.accepted / elapsed:.0f} a second, {len(good.failures)} failed"
    )
    for failure in sorted(set(good.failures))[:5]:
        print(f"      {failure}")
    print(f"bad clients: {bad.runs} connections")
    print(f"messages miscounted: {miscounted}")
    print(f"{usage}, {descriptors_left} after all connections were closed")
    print(f"CPU of all processes: {cpu:.0f} % of one core; no worker was replaced: {same_workers}")
    print(f"{tracebacks} tracebacks; exit status {status}")
    grows = seconds >= 2 * WARM_UP and slope(usage.anonymous["all"]) >= MAX_GROWTH_AN_HOUR
    if grows:
        print(f"memory grows by at least {MAX_GROWTH_AN_HOUR} KiB an hour")
    return int(bool(miscounted or good.failures or tracebacks or status or not same_workers or grows))


if __name__ == "__main__":
    sys.exit(main())
