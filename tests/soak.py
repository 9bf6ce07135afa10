"""The soak: good and bad clients together, for long; what grows, and whether the counters are exact.

`python -m tests.soak [--minutes 10]`. First it looks what the machine takes when smtp-source does its worst,
and half of that is what smtp-source then sends all the time. Beside it good clients send messages at a steady
rate, in the clear, pipelined and under STARTTLS, and know how many were taken. Bad ones reset, trickle,
never read, send noise, and from time to time one breaks into a message. None of them ends a message, so the
server's counters must agree with the good ones to the last message.

Memory is compared by a straight line through its samples, after a warm-up. What is compared is all a process
can write to that is its own, pages that it still shares with the master it was forked from among it: so a
page that is copied as it is written to is not counted as growth, for there are only so many of them. How many
were copied is said apart, and what the maps take that all share, which cannot grow beyond their sizes.
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

from blackhole.metrics.counters import Counters
from tests.faults.clients import RESET, Address, Client, Refused, cpu, family, memory, source
from tests.faults.processes import issue, secured, settled
from tests.program import Program, descriptors, free_port, title, wait_for

GOAL = 1024
"""KiB that all processes together may grow by in an hour; of a short run nobody can tell."""

WARM_UP = 600.0
"""Seconds at least, or half of the time, before memory is looked at; in a long run a fifth of it."""

WAYS = (), ("-d",)
"""A connection for each message, and several messages on one."""


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


def bulk(address: Address, rate: int) -> Callable[[Random], int]:
    """A second's worth of messages, as fast as smtp-source sends them; each other time a connection each."""

    def work(dice: Random) -> int:
        command = source(address, rate, *WAYS[dice.random() < 0.5])
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return rate

    return work


def capacity(address: Address, seconds: float = 10.0) -> tuple[float, int]:
    """How many messages a second smtp-source gets rid of, half of them each way; and how many it sent."""
    began, sent = time.monotonic(), 0
    while (took := time.monotonic() - began) < seconds:
        for how in WAYS:
            subprocess.run(source(address, 2000, *how), check=True, capture_output=True, timeout=60)
            sent += 2000
    return sent / took, sent


def slope(samples: list[tuple[float, float]]) -> float:
    """KiB an hour."""
    times, values = zip(*samples, strict=True)
    return float(statistics.linear_regression(times, values).slope * 3600)


class Samples:
    """What memory and descriptors were, from time to time."""

    def __init__(self) -> None:
        self.own: dict[str, list[tuple[float, float]]] = {}
        """KiB of each process, and of all."""
        self.shared: list[float] = []
        """KiB that copies of all pages would take beyond what is taken now."""
        self.maps: list[float] = []
        """KiB of the maps that all share."""
        self.files: list[int] = []

    def take(self, pid: int) -> None:
        """Look at a master and its workers."""
        now, pids = time.monotonic(), family(pid)
        sizes = {title(one) or "master": memory(one) for one in pids}
        own = {name: float(size["Anonymous"]) for name, size in sizes.items()}
        for name, size in (own | {"all": sum(own.values())}).items():
            self.own.setdefault(name, []).append((now, size))
        self.shared.append(sum(size["Anonymous"] - size["Pss_Anon"] for size in sizes.values()))
        self.maps.append(sum(size["Pss_Shmem"] for size in sizes.values()))
        self.files.append(sum(len(descriptors(one)) for one in pids))

    def __str__(self) -> str:
        lines = [
            f"memory of {name}: {points[0][1]:.0f} KiB at first, {points[-1][1]:.0f} at last, "
            f"slope {slope(points):+.0f} KiB/h"
            for name, points in self.own.items()
        ]
        lines += [
            f"pages shared since the fork, each of which is copied once it is written to: "
            f"{self.shared[0]:.0f} KiB at first, {self.shared[-1]:.0f} at last",
            f"maps that all share: {self.maps[0]:.0f} KiB at first, {self.maps[-1]:.0f} at last",
            f"descriptors: {min(self.files)} to {max(self.files)}",
        ]
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description="Good and bad clients for long."
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--bulk", type=int, help="messages a second of smtp-source (default: half of what the machine takes)"
    )
    parser.add_argument(
        "--rate",
        type=float,
        help="connections of good clients a second (default: 10 and 2 %% of the bulk)",
    )
    chosen = parser.parse_args()
    seconds = chosen.minutes * 60
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="soak-") as where:
        folder = Path(where)
        issue(folder)
        limits = "--timeout=20", "--tls_timeout=10", "--write_timeout=10"
        with Program("--workers=2", f"--ssl_port={free_port()}", *limits, *secured(folder)) as program:
            settled(program, 2)
            tried, many = 0, chosen.bulk
            if many is None:
                most, tried = capacity(program.address)
                many = int(most / 2)
                print(f"the machine takes {most:.0f} messages a second of smtp-source; {many} are sent")
            rate = chosen.rate or 10 + many / 50
            print(f"{rate:.0f} good and as many bad connections a second besides", flush=True)
            fine, rude = Crew(seconds), Crew(seconds)
            fine.start(4, rate, good(program.address))
            rude.start(6, rate, bad(program.address))
            if many:
                fine.start(1, 1, bulk(program.address, many))
            samples = Samples()
            workers, began, used = program.workers(), time.monotonic(), cpu(*family(program.pid))
            warm = began + min(seconds / 2, max(seconds / 5, WARM_UP))
            while (now := time.monotonic()) < fine.until:
                if now > warm:
                    samples.take(program.pid)
                time.sleep(min(5, seconds / 40))
            fine.join()
            rude.join()
            took = time.monotonic() - began
            used = 100 * (cpu(*family(program.pid)) - used) / took
            stats = Counters.of(program.pid)
            wait_for(lambda: stats.snapshot().open == 0, "all have left", 90)
            left = sum(len(descriptors(pid)) for pid in family(program.pid))
            snapshot = stats.snapshot()
            counted = snapshot.messages["accepted"]
            tracebacks = program.output().count("Traceback")
            same = program.workers() == workers
            code = program.stop()
    beside = counted - fine.taken - tried
    at_last = os.getloadavg()[0]
    print(f"{took / 60:.1f} minutes, load of the machine {load:.1f} at first, {at_last:.1f} at last")
    print(
        f"good: {fine.connections} connections and runs of smtp-source, {fine.taken} messages, "
        f"{fine.taken / took:.0f} a second, {len(fine.failed)} failed"
    )
    for fault in sorted(set(fine.failed))[:5]:
        print(f"      {fault}")
    print(f"bad: {rude.connections} connections")
    print(f"counted beside what clients counted: {beside} messages")
    print(f"{samples}, {left} when all had left")
    print(f"CPU of all processes: {used:.0f} % of one core; the same workers to the end: {same}")
    print(f"{tracebacks} tracebacks; exit code {code}")
    grows = seconds >= 2 * WARM_UP and slope(samples.own["all"]) >= GOAL
    if grows:
        print(f"memory grows by more than {GOAL} KiB an hour")
    return int(bool(beside or fine.failed or tracebacks or code or not same or grows))


if __name__ == "__main__":
    sys.exit(main())
