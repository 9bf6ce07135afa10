"""The soak: good and bad clients together, for long; what grows, and whether the counters are exact.

`python -m tests.soak [--minutes 10]`. Good clients send messages at a steady rate, in the clear, pipelined
and under STARTTLS, and know how many were taken. Bad ones reset, trickle, never read, send noise, and from
time to time one breaks into a message. None of them ends a message, so the server's counters must agree with
the good ones to the last message. Memory is compared by a straight line through its samples, after the first
fifth of the time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from blackhole.stats import Stats
from tests.faults.clients import Address, Client, Refused, cpu, family, pss
from tests.faults.processes import issue, secured, settled
from tests.program import Program, descriptors, free_port, title, wait_for

RESET = struct.pack("ii", 1, 0)


class Crew:
    """Threads, and what they counted."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.taken = 0
        self.connections = 0
        self.failed: list[str] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, number: int, rate: float, work: Callable[[Random], int]) -> None:
        """So many threads that do `work` so many times a second together; it gives back messages taken."""
        for _ in range(number):
            thread = threading.Thread(target=self._run, args=(number / rate, work), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self, pause: float, work: Callable[[Random], int]) -> None:
        dice = Random(threading.get_ident())
        while (now := time.monotonic()) < self.until:
            fault, taken = "", 0
            try:
                taken = work(dice)
            except (OSError, Refused, AssertionError, subprocess.SubprocessError) as error:
                fault = repr(error)
            with self._lock:
                self.connections += 1
                self.taken += taken
                if fault:
                    self.failed.append(fault)
            time.sleep(max(0.0, now + pause - time.monotonic()))

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)


def good(address: Address) -> Callable[[Random], int]:
    def work(dice: Random) -> int:
        with Client(address) as client:
            client.say("EHLO good.test")
            if dice.random() < 0.2:
                client.starttls()
                client.say("EHLO good.test")
            times = int(dice.random() * 4) + 1
            for _ in range(times):
                body = b"Subject: soak\r\n\r\n" + b"x" * 70 * int(dice.random() * 400) + b"\r\n"
                assert client.mail(body).startswith("250 2.0.0 OK: queued"), "not taken"
            assert client.say("QUIT").startswith("221"), "no goodbye"
            return times

    return work


SAID = (
    b"", b"EHLO bad.test\r\n", b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nhalf a mess",
    b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"STARTTLS\r\n\x16\x03", b"\0\xff\r\n" * 9,
    b"XYZZY\r\n" * 50, b"x" * 70_000, b"NOOP\r\n" * 3000,
)  # fmt: skip


def bad(address: Address) -> Callable[[Random], int]:
    """Comes, says something, and mostly leaves as no client should."""

    def work(dice: Random) -> int:
        with suppress(OSError), socket.create_connection(address, 10) as client:
            client.settimeout(3)
            said = SAID[int(dice.random() * len(SAID))]
            cut = int(dice.random() * (len(said) + 1)) if dice.random() < 0.3 else len(said)
            client.sendall(said[:cut])
            if dice.random() < 0.2:
                time.sleep(dice.random() * 8)
            if dice.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return 0

    return work


def bulk(address: Address, rate: float) -> Callable[[Random], int]:
    """A second's worth of messages, as fast as smtp-source sends them; each other time a connection each."""
    source = shutil.which("smtp-source", path="/usr/sbin:/usr/bin")

    def work(dice: Random) -> int:
        assert source is not None, "smtp-source (Debian package postfix) is not installed"
        how = ("-d",) if dice.random() < 0.5 else ()
        command = [source, *how, "-s", "20", "-m", str(int(rate)), "{}:{}".format(*address)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return int(rate)

    return work


def slope(samples: list[tuple[float, float]]) -> float:
    """KiB an hour."""
    times, values = zip(*samples, strict=True)
    return float(statistics.linear_regression(times, values).slope * 3600)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Good and bad clients for long."
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=60, help="connections of good clients a second")
    parser.add_argument("--bulk", type=float, default=0, help="messages a second of smtp-source besides")
    chosen = parser.parse_args()
    seconds = chosen.minutes * 60
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="soak-") as where:
        folder = Path(where)
        issue(folder)
        limits = "--timeout=20", "--tls_timeout=10", "--write_timeout=10"
        with Program("--workers=2", f"--ssl_port={free_port()}", *limits, *secured(folder)) as program:
            settled(program, 2)
            fine, rude = Crew(seconds), Crew(seconds)
            fine.start(4, chosen.rate, good(program.address))
            rude.start(6, chosen.rate, bad(program.address))
            if chosen.bulk:
                fine.start(1, 1, bulk(program.address, chosen.bulk))
            samples: dict[str, list[tuple[float, float]]] = {}
            files: list[int] = []
            workers, began, used = program.workers(), time.monotonic(), cpu(*family(program.pid))
            while (now := time.monotonic()) < fine.until:
                if now > began + seconds / 5:
                    sizes = {title(pid) or "master": pss(pid) for pid in family(program.pid)}
                    for name, size in (sizes | {"all": sum(sizes.values())}).items():
                        samples.setdefault(name, []).append((now, size))
                    files.append(sum(len(descriptors(pid)) for pid in family(program.pid)))
                time.sleep(min(5, seconds / 40))
            fine.join()
            rude.join()
            took = time.monotonic() - began
            used = 100 * (cpu(*family(program.pid)) - used) / took
            stats = Stats.of(program.pid)
            wait_for(lambda: stats.snapshot().open == 0, "all have left", 90)
            left = sum(len(descriptors(pid)) for pid in family(program.pid))
            snapshot = stats.snapshot()
            counted = snapshot.messages["accepted"]
            tracebacks = program.output().count("Traceback")
            same = program.workers() == workers
            code = program.stop()
    beside = counted - fine.taken
    at_last = os.getloadavg()[0]
    print(f"{took / 60:.1f} minutes, load of the machine {load:.1f} at first, {at_last:.1f} at last")
    print(f"good: {fine.connections} connections, {fine.taken} messages, {len(fine.failed)} failed")
    for fault in sorted(set(fine.failed))[:5]:
        print(f"      {fault}")
    print(f"bad: {rude.connections} connections")
    print(f"counted beside what clients counted: {beside} messages")
    for name, points in samples.items():
        grown = f"{points[0][1]:.0f} KiB at first, {points[-1][1]:.0f} at last"
        print(f"memory of {name}: {grown}, slope {slope(points):+.0f} KiB/h")
    print(f"descriptors: {min(files)} to {max(files)}, {left} when all had left")
    print(f"CPU of all processes: {used:.0f} % of one core; the same workers to the end: {same}")
    print(f"{tracebacks} tracebacks; exit code {code}")
    return int(bool(beside or fine.failed or tracebacks or code or not same))


if __name__ == "__main__":
    sys.exit(main())
