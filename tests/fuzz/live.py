"""Fuzzing of the real program over sockets: random inputs, random pieces and random disconnects.

Meanwhile the output, the workers, the descriptors and the memory of the program are watched.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from tests.fuzz.inputs import REPLIES, generate, split
from tests.fuzz.listener_kinds import AUTH_PHRASES, MANY_COMMANDS, PHRASES, RULE_PHRASES
from tests.program import Program, descriptors
from tests.resource_usage import master_and_workers, memory
from tests.smtp_client import Address, reset_on_close

ALL_PHRASES = PHRASES + MANY_COMMANDS + AUTH_PHRASES + RULE_PHRASES

OPTIONS = (
    (),
    ("--auth=any", "--auth_plaintext", "--scenario=profile:greylist", "--strict"),
    ("--public", "--trusted=192.0.2.0/24", "--client_connections=0", "--client_connection_rate=0"),
)
"""The options to start the program with. None refuses a connection or cuts off a reply."""

THREADS = 16
"""Most of them wait where replies to errors are delayed."""

MAX_SILENCE = 30.0
"""Seconds within which a client must receive something, and some client must be served."""

MAX_GROWTH = 5 * 1024
"""KiB by which all processes together may grow."""


@dataclass
class LiveResult:
    """What clients have sent, and what went wrong."""

    connections: int = 0
    octets: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, other: LiveResult) -> None:
        """Add the result of another client."""
        self.connections += other.connections
        self.octets += other.octets
        self.findings += other.findings


def connect_and_send(address: Address, source: Random, result: LiveResult) -> None:
    """Send one input, and read the replies or reset the connection."""
    phrases = generate(source, ALL_PHRASES)
    received = b""
    complete = False
    with suppress(OSError), socket.create_connection(address, MAX_SILENCE) as client:
        result.connections += 1
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in split(source, phrases)[:20]:
            client.sendall(piece)
            result.octets += len(piece)
        if source.random() < 0.3:
            reset_on_close(client)
            client.close()
        else:
            client.shutdown(socket.SHUT_WR)
            try:
                while data := client.recv(65536):
                    received += data
                complete = True
            except TimeoutError:
                result.findings.append(f"no reply for {MAX_SILENCE:g} s after {received!r} to {phrases!r}")
    if complete and not REPLIES.fullmatch(received):
        result.findings.append(f"not SMTP replies: {received!r}")


class LiveFuzzer:
    """Threads that connect to a program, which is watched at the same time."""

    def __init__(self, program: Program, seed: int, report: Callable[[LiveResult], None]) -> None:
        self.program, self.seed, self.report = program, seed, report
        self.workers = program.workers()
        self.result = LiveResult()

    def run_for(self, seconds: float) -> None:
        """Fuzz the program for this time."""
        results = [LiveResult() for _ in range(THREADS)]
        until = time.monotonic() + seconds
        self.seed += 1

        def work(number: int) -> None:
            source = Random(f"{self.seed} {number}")
            while time.monotonic() < until:
                connect_and_send(self.program.address, source, results[number])

        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(work, number) for number in range(THREADS)]
            connections, last_progress = 0, time.monotonic()
            while not all(future.done() for future in futures):
                now, so_far = time.monotonic(), LiveResult()
                for one in results:
                    so_far.add(one)
                if so_far.connections > connections:
                    connections, last_progress = so_far.connections, now
                elif now > last_progress + MAX_SILENCE:
                    last_progress = now
                    self.result.findings.append(f"no client was served for {MAX_SILENCE:g} s")
                self.check_program()
                so_far.add(self.result)
                self.report(so_far)
                time.sleep(min(1.0, seconds / 10))
            for one, future in zip(results, futures, strict=True):
                future.result()
                self.result.add(one)
        self.check_program()  # a loaded machine may have left no time before

    def check_program(self) -> None:
        """Add a finding for replaced workers, and once for each traceback."""
        output, workers = self.program.output(), self.program.workers()
        if workers != self.workers:
            self.result.findings.append(f"workers {self.workers} were replaced by {workers}")
            self.workers = workers
        if (place := output.find("Traceback")) >= 0:
            fault = f"a traceback: {output[place : place + 4000]}"
            if fault not in self.result.findings:
                self.result.findings.append(fault)

    def usage_when_idle(self) -> tuple[int, int]:
        """Wait until no connection is open, and return the number of descriptors and the KiB of memory."""
        self.program.wait_until_idle(90)
        pids = master_and_workers(self.program.pid)
        return sum(len(descriptors(one)) for one in pids), sum(memory(one)["Anonymous"] for one in pids)


def fuzz_program(
    options: tuple[str, ...],
    seconds: float,
    seed: int,
    report: Callable[[LiveResult], None] = lambda result: None,
) -> tuple[LiveResult, int, int]:
    """Fuzz a new program for this time.

    Return the result, and the descriptors and KiB by which the program has grown since a tenth of the time.
    """
    with Program("--workers=2", *options) as program:
        fuzzer = LiveFuzzer(program, seed, report)
        fuzzer.run_for(seconds / 10)
        files, size = fuzzer.usage_when_idle()
        fuzzer.run_for(seconds * 0.9)
        files_after, size_after = fuzzer.usage_when_idle()
        fuzzer.check_program()
        new_descriptors, growth = files_after - files, size_after - size
        if abs(new_descriptors) > 2:
            fuzzer.result.findings.append(f"{new_descriptors} descriptors more than at the start")
        if growth > MAX_GROWTH:
            fuzzer.result.findings.append(f"{growth} KiB more than at the start")
        if status := program.stop():
            fuzzer.result.findings.append(f"exit status {status}")
    return fuzzer.result, new_descriptors, growth
