"""Noise over sockets, for the real program: random inputs, random cuts, random ends; and a watch over it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from blackhole.metrics.counters import Counters
from tests.faults.clients import RESET, Address, family, memory
from tests.fuzz.inputs import VALID, cut, generate
from tests.fuzz.kinds import FLOOD, HEARD, SECRETS, TALK
from tests.program import Program, descriptors, wait_for

WORDS = HEARD + FLOOD + SECRETS + TALK

OPTIONS = (
    (),
    ("--auth=any", "--auth_plaintext", "--scenario=profile:greylist", "--strict"),
    ("--public", "--trusted=192.0.2.0/24", "--client_connections=0", "--client_connection_rate=0"),
)
"""Ways to start the program. Nobody is kept out, and no reply is cut off."""

THREADS = 16
"""Most of them wait, where mistakes are answered late."""

SILENCE = 30.0
"""Seconds in which a client must hear something, and somebody must be served."""

GROWTH = 5 * 1024
"""KiB by which all processes together may grow."""


@dataclass
class Heard:
    """What clients heard, and what is wrong."""

    connections: int = 0
    octets: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, other: Heard) -> None:
        """What others heard too."""
        self.connections += other.connections
        self.octets += other.octets
        self.findings += other.findings


def visit(address: Address, dice: Random, heard: Heard) -> None:
    """One connection."""
    words = generate(dice, WORDS)
    answered = b""
    whole = False
    with suppress(OSError), socket.create_connection(address, SILENCE) as client:
        heard.connections += 1
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in cut(dice, words)[:20]:
            client.sendall(piece)
            heard.octets += len(piece)
        if dice.random() < 0.3:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
        else:
            client.shutdown(socket.SHUT_WR)
            try:
                while data := client.recv(65536):
                    answered += data
                whole = True
            except TimeoutError:
                heard.findings.append(f"nothing for {SILENCE:g} s after {answered!r} to {words!r}")
    if whole and not VALID.fullmatch(answered):
        heard.findings.append(f"no replies: {answered!r}")


class Noise:
    """Several threads that visit a program, and somebody who watches it all the time."""

    def __init__(self, program: Program, seed: int, tell: Callable[[Heard], None]) -> None:
        self.program, self.seed, self.tell = program, seed, tell
        self.workers = program.workers()
        self.heard = Heard()

    def make(self, seconds: float) -> None:
        """Noise for so long."""
        crew = [Heard() for _ in range(THREADS)]
        until = time.monotonic() + seconds
        self.seed += 1

        def work(number: int) -> None:
            dice = Random(f"{self.seed} {number}")
            while time.monotonic() < until:
                visit(self.program.address, dice, crew[number])

        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(work, number) for number in range(THREADS)]
            served, when = 0, time.monotonic()
            while not all(future.done() for future in futures):
                now, so_far = time.monotonic(), Heard()
                for one in crew:
                    so_far.add(one)
                if so_far.connections > served:
                    served, when = so_far.connections, now
                elif now > when + SILENCE:
                    when = now
                    self.heard.findings.append(f"nobody was served for {SILENCE:g} s")
                self.look()
                so_far.add(self.heard)
                self.tell(so_far)
                time.sleep(min(1.0, seconds / 10))
            for one, future in zip(crew, futures, strict=True):
                future.result()
                self.heard.add(one)

    def look(self) -> None:
        """Notice what went wrong inside: each thing once."""
        output, workers = self.program.output(), self.program.workers()
        if workers != self.workers:
            self.heard.findings.append(f"workers {self.workers} have become {workers}")
            self.workers = workers
        if (place := output.find("Traceback")) >= 0:
            fault = f"a traceback: {output[place : place + 4000]}"
            if fault not in self.heard.findings:
                self.heard.findings.append(fault)

    def settle(self) -> tuple[int, int]:
        """Descriptors and KiB of memory, when nobody is there any more."""
        pid = self.program.pid
        wait_for(lambda: Counters.of(pid).snapshot().open == 0, "all are gone", 90)
        pids = family(pid)
        return sum(len(descriptors(one)) for one in pids), sum(memory(one)["Anonymous"] for one in pids)


def run(
    options: tuple[str, ...], seconds: float, seed: int, tell: Callable[[Heard], None] = lambda heard: None
) -> tuple[Heard, int, int]:
    """Noise for a program for so long: what was heard, and by how many descriptors and KiB it grew since a
    tenth of the time had passed."""
    with Program("--workers=2", *options) as program:
        noise = Noise(program, seed, tell)
        noise.make(seconds / 10)
        files, size = noise.settle()
        noise.make(seconds * 0.9)
        files_then, size_then = noise.settle()
        noise.look()
        more, grown = files_then - files, size_then - size
        if abs(more) > 2:
            noise.heard.findings.append(f"{more} descriptors more than at first")
        if grown > GROWTH:
            noise.heard.findings.append(f"{grown} KiB more than at first")
        if code := program.stop():
            noise.heard.findings.append(f"exit code {code}")
    return noise.heard, more, grown
