"""A message of two gibibytes passes through a worker that does not grow."""

from __future__ import annotations

import socket

import pytest

from blackhole.smtp.violations import IN_HEADERS
from tests.certificates import Certificate
from tests.program import Program, children, free_port, status

MIB = 1 << 20

LINES = (b"x" * 78 + b"\r\n") * (MIB // 80 + 1)
"""Short lines, as mail has; a little more than a mebibyte, so that no line keeps its place in the reads."""

DOTS = b"\r\n..\r\n.x" * (MIB // 8)
"""Nothing but what looks like the end of the message, and is not."""

ONE_LINE = b"x" * MIB
"""A line that does not end."""

GROWTH = 512
"""KiB that a worker may grow by: the buffers of one connection. It takes 0 to 152."""

ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""glibc keeps seven of the ends that short reads leave over, of each size up to a kibibyte; each spoils the
place of a read. That is bounded, up to 1.6 MiB were seen, and it depends on chance: here it is not wanted."""


def peak(pid: int) -> int:
    """The most KiB that have been resident in a process."""
    return int(status(pid)["VmHWM"].split()[0])


def send(client: socket.socket, body: bytes, times: int) -> None:
    """A message, made of the same octets again and again."""
    client.sendall(b"DATA\r\n")
    assert client.recv(4096).startswith(b"354 ")
    client.sendall(b"Subject: x\r\n\r\n")
    for _ in range(times):
        client.sendall(body)
    client.sendall(b"\r\n.\r\n")
    assert client.recv(4096).startswith(b"250 ")


@pytest.mark.parametrize(
    ("body", "size", "secure"),
    [(LINES, 2048, False), (ONE_LINE, 512, False), (DOTS, 256, False), (LINES, 256, True)],
    ids=["two gibibytes", "one line", "dots", "under tls"],
)
def test_worker_memory_does_not_grow_with_a_message(
    body: bytes, size: int, secure: bool, certificate: Certificate
) -> None:
    port = free_port()
    tls = [f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", f"--ssl_port={port}"]
    options = ["--workers=1", "--dashboard=off", "--message_size_limit=0", *(tls if secure else [])]
    with Program(*options, env=ALLOCATOR) as program:
        (worker,) = children(program.pid)  # which glibc's tunables leave without their titles
        client = socket.create_connection(("127.0.0.1", port) if secure else program.address, 60)
        if secure:
            client = certificate.client.wrap_socket(client, server_hostname="mx.test")
        with client:
            assert client.recv(4096).startswith(b"220 ")
            send(client, body, 4)
            before = peak(worker)
            send(client, body, size)
            assert peak(worker) - before < GROWTH
            assert children(program.pid) == [worker]
        assert program.stop() == 0


def test_worker_memory_does_not_grow_with_a_message_whose_content_is_inspected() -> None:
    """After the first message, of which 256 KiB are kept until its end."""
    options = "--workers=1", "--message_size_limit=0", "--inspect=all", "--inspect-content"
    with Program(*options, env=ALLOCATOR) as program:
        (worker,) = children(program.pid)
        with socket.create_connection(program.address, 60) as client:
            assert client.recv(4096).startswith(b"220 ")
            send(client, LINES, 4)
            before = peak(worker)
            send(client, LINES, 64)
            assert peak(worker) - before < GROWTH
        program.wait_until_idle()
        assert program.snapshot().inspected[IN_HEADERS].inspected == 2
        assert program.stop() == 0
