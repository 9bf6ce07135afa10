"""Clients that load a server: senders at a steady rate, and thousands of connections at once."""

from __future__ import annotations

import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Self

from tests.smtp_client import TIMEOUT, Address, SMTPClient, UnexpectedReply, deliver


class LoadGenerator:
    """Threads that send messages at a steady rate while the `with` block runs.

    `rate` is the number of messages a second of all threads together, `tries` how often each is tried.
    """

    def __init__(
        self,
        address: Address,
        rate: float,
        threads: int = 4,
        tries: int = 1,
        send: Callable[[Address], None] = deliver,
    ) -> None:
        self._address, self._interval, self._tries, self._send = address, threads / rate, tries, send
        self.sent = 0
        self.failures: list[str] = []
        """The last error of each message that could not be sent in any of its tries."""
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more messages, and wait for those being sent."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(TIMEOUT * 2)

    @property
    def percent_delivered(self) -> float:
        return 100 * (1 - len(self.failures) / max(self.sent, 1))

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._interval, time.monotonic() - 1)
            failure = ""
            for _ in range(self._tries):
                try:
                    self._send(self._address)
                    failure = ""
                    break
                except (OSError, UnexpectedReply) as error:
                    failure = repr(error)
            with self._lock:
                self.sent += 1
                if failure:
                    self.failures.append(failure)


@contextmanager
def many_sockets() -> Iterator[list[socket.socket]]:
    """Raise the limit of open files to its maximum, and close the sockets in the list at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sockets: list[socket.socket] = []
    try:
        yield sockets
    finally:
        for connection in sockets:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_connections(address: Address, count: int, sockets: list[socket.socket], at_once: int = 200) -> float:
    """Open connections, wait until the server has sent something on each, and return the seconds it took.

    The sockets are appended to `sockets`, and nothing is read from them. Raises TimeoutError.
    """
    began = time.monotonic()
    poll = select.poll()
    waiting: dict[int, socket.socket] = {}
    left = count
    while left or waiting:
        while left and len(waiting) < at_once:
            connection = socket.socket()
            connection.setblocking(False)
            with suppress(BlockingIOError):
                connection.connect(address)
            sockets.append(connection)
            waiting[connection.fileno()] = connection
            poll.register(connection, select.POLLIN)
            left -= 1
        ready = poll.poll(TIMEOUT * 1000)
        if not ready:
            raise TimeoutError(f"{len(waiting)} of {count} connections receive nothing")
        for fd, _ in ready:
            poll.unregister(fd)
            with suppress(OSError):
                waiting.pop(fd).recv(4096, socket.MSG_PEEK)
    return time.monotonic() - began


def connection_batches(
    address: Address, count: int, at_once: int = 50
) -> Iterator[list[tuple[int, socket.socket]]]:
    """Open connections in batches, each with its number; a batch is closed when the next is asked for.

    They come from several local addresses. To have the server work on all of a batch at once, send on all
    before reading from one.
    """
    for start in range(0, count, at_once):
        with ExitStack() as stack:
            batch = []
            for number in range(start, min(start + at_once, count)):
                connection = stack.enter_context(socket.socket())
                connection.settimeout(TIMEOUT)
                # An address has 28,000 ports, and one stays in TIME-WAIT for a minute unless it was reset.
                connection.bind((f"127.0.0.{1 + number % 8}", 0))
                connection.connect(address)
                batch.append((number, connection))
            yield batch


def percentile(values: list[float], share: float) -> float:
    """Return the value below which this share, from 0 to 1, of the values lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def noop_times(client: SMTPClient, count: int, pause: float = 0.0) -> list[float]:
    """Send NOOP commands with a pause after each, and return the seconds that each reply took."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        reply = client.command("NOOP")
        if not reply.startswith("250"):
            raise UnexpectedReply(reply)
        taken.append(time.perf_counter() - began)
        time.sleep(pause)
    return taken


@contextmanager
def endless_senders(address: Address, count: int) -> Iterator[None]:
    """Run a process with clients that each send a body without an end, as fast as the server reads it."""
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS_SENDERS, address[0], str(address[1]), str(count)],
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"sending\n", "the senders have not started"
            yield
        finally:
            process.kill()


ENDLESS_SENDERS = """
import select, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
block = (b"x" * 998 + b"\\r\\n") * 64
clients = [socket.create_connection((host, port)) for _ in range(count)]
for client in clients:
    client.recv(999); client.sendall(b"DATA\\r\\n"); client.recv(999); client.setblocking(False)
print("sending", flush=True)
poll = select.poll()
for client in clients:
    poll.register(client, select.POLLOUT)
found = {client.fileno(): client for client in clients}
while True:
    for fd, _ in poll.poll():
        try:
            found[fd].send(block)
        except BlockingIOError:
            pass
"""
