"""Clients: one that holds a conversation, many that send mail at a rate, and crowds that do nothing."""

from __future__ import annotations

import os
import resource
import select
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from tests.program import children, title


def hello() -> bytes:
    """What a client says first in a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()


Address = tuple[str, int]
PATIENCE = 30.0

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for no time: close() resets the connection, which then leaves nothing behind in the kernel."""


class Client:
    """One SMTP client on a socket."""

    def __init__(self, address: Address, greeted: bool = True, patience: float = PATIENCE) -> None:
        self.socket: socket.socket = socket.create_connection(address, patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._left = b""
        if greeted:
            try:
                line = self.hear()
                if not line.startswith("220 "):
                    raise Refused(line)
            except BaseException:
                self.socket.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self) -> str:
        """The last line of a reply; nothing when the server has hung up."""
        while True:
            line, newline, rest = self._left.partition(b"\n")
            if newline:
                self._left = rest
                if line[3:4] != b"-":
                    return line.decode().rstrip()
                continue
            data = self.socket.recv(65536)
            if not data:
                return ""
            self._left += data

    def say(self, line: str) -> str:
        self.send(f"{line}\r\n".encode())
        return self.hear()

    def rest(self) -> bytes:
        """Everything until the server hangs up."""
        heard = self._left
        with suppress(ConnectionResetError, ssl.SSLError):
            while data := self.socket.recv(65536):
                heard += data
        return heard

    def begin(self) -> None:
        """As far as the 354."""
        assert self.say("DATA").startswith("354"), "no 354"

    def end(self) -> str:
        self.send(b".\r\n")
        return self.hear()

    def mail(self, body: bytes = b"Subject: hello\r\n\r\nhello\r\n") -> str:
        """A whole message; the reply to its end."""
        self.send(b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\n")
        for wanted in ("250", "250", "354"):
            line = self.hear()
            if not line.startswith(wanted):
                raise Refused(line)
        self.send(body + b".\r\n")
        return self.hear()

    def starttls(self) -> None:
        """Whatever the certificate says."""
        assert self.say("STARTTLS").startswith("220"), "no 220"
        self.wrap()

    def wrap(self) -> None:
        self.socket = blind().wrap_socket(self.socket)


class Refused(Exception):
    """The server did not want to."""


def blind() -> ssl.SSLContext:
    """A client that believes every certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def deliver(address: Address, patience: float = PATIENCE) -> None:
    """A message on a connection of its own. Raises OSError or Refused."""
    with Client(address, patience=patience) as client:
        line = client.mail()
        if not line.startswith("250"):
            raise Refused(line)
        client.say("QUIT")


def source(address: Address, messages: int, *how: str) -> list[str]:
    """The command that has Postfix's smtp-source send so many, twenty at once, as fast as they are taken;
    with `-d` several on a connection. It ends with 0 when all were taken."""
    path = shutil.which("smtp-source", path="/usr/sbin:/usr/bin")
    assert path is not None, "smtp-source (Debian package postfix) is not installed"
    return [path, *how, "-s", "20", "-m", str(messages), "{}:{}".format(*address)]


class Load:
    """Threads that send messages, together so many a second, until it is left."""

    def __init__(
        self,
        address: Address,
        rate: float,
        threads: int = 4,
        tries: int = 1,
        send: Callable[[Address], None] = deliver,
    ) -> None:
        self._address, self._pause, self._tries, self._send = address, threads / rate, tries, send
        self.sent = 0
        self.failed: list[str] = []
        """What went wrong with those that could not be sent, in as many tries as there were."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE * 2)

    def _work(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause, time.monotonic() - 1)
            fault = ""
            for _ in range(self._tries):
                try:
                    self._send(self._address)
                    fault = ""
                    break
                except (OSError, Refused, AssertionError) as error:
                    fault = repr(error)
            with self._lock:
                self.sent += 1
                if fault:
                    self.failed.append(fault)


@contextmanager
def crowd() -> Iterator[list[socket.socket]]:
    """A list whose sockets are closed at the end; as many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sockets: list[socket.socket] = []
    try:
        yield sockets
    finally:
        for one in sockets:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def dial(address: Address, count: int, sockets: list[socket.socket], at_once: int = 200) -> float:
    """Connect so many and hear something from each; the seconds that took. Raises TimeoutError."""
    began = time.monotonic()
    poll = select.poll()
    waiting: dict[int, socket.socket] = {}
    left = count
    while left or waiting:
        while left and len(waiting) < at_once:
            one = socket.socket()
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(address)
            sockets.append(one)
            waiting[one.fileno()] = one
            poll.register(one, select.POLLIN)
            left -= 1
        found = poll.poll(PATIENCE * 1000)
        if not found:
            raise TimeoutError(f"{len(waiting)} of {count} hear nothing")
        for fd, _ in found:
            poll.unregister(fd)
            with suppress(OSError):
                waiting.pop(fd).recv(4096, socket.MSG_PEEK)
    return time.monotonic() - began


def visits(address: Address, count: int, at_once: int = 50) -> Iterator[list[tuple[int, socket.socket]]]:
    """So many connections, some at a time, each with its number, from several addresses of ours; they are
    closed when the next are asked for. What is said to all of a batch before one of them is waited for is
    answered meanwhile."""
    for start in range(0, count, at_once):
        with ExitStack() as stack:
            batch = []
            for number in range(start, min(start + at_once, count)):
                one = stack.enter_context(socket.socket())
                one.settimeout(PATIENCE)
                # An address has 28,000 ports, and one that was not reset is not free again for a minute.
                one.bind((f"127.0.0.{1 + number % 8}", 0))
                one.connect(address)
                batch.append((number, one))
            yield batch


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def noops(client: Client, count: int, pause: float = 0.0) -> list[float]:
    """Seconds that each answer to a NOOP took."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        assert client.say("NOOP").startswith("250"), "no answer to NOOP"
        taken.append(time.perf_counter() - began)
        time.sleep(pause)
    return taken


@contextmanager
def streamers(address: Address, count: int) -> Iterator[None]:
    """A process with so many clients that send bodies without end as fast as they are taken."""
    with subprocess.Popen(
        [sys.executable, "-c", STREAM, address[0], str(address[1]), str(count)], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n", "the streams began"
            yield
        finally:
            process.kill()


STREAM = """
import select, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
block = (b"x" * 998 + b"\\r\\n") * 64
clients = [socket.create_connection((host, port)) for _ in range(count)]
for client in clients:
    client.recv(999); client.sendall(b"DATA\\r\\n"); client.recv(999); client.setblocking(False)
print("on", flush=True)
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


# What a program takes.


def memory(pid: int) -> dict[str, int]:
    """KiB of each sort of memory, by the names of /proc/PID/smaps_rollup."""
    _, *lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}


def pss(*pids: int) -> float:
    """KiB of memory, that which is shared divided by those who share it.

    Without the pages of files: our part of these changes by a MiB when others begin or end who run the same
    Python.
    """
    return sum(sizes["Pss_Anon"] + sizes["Pss_Shmem"] for sizes in map(memory, pids))


def family(pid: int) -> list[int]:
    """A master and its workers."""
    return [pid, *(child for child in children(pid) if title(child).startswith("blackhole: "))]


def cpu(*pids: int) -> float:
    """Seconds of processor time."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
