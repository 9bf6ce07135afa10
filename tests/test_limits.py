"""Limits that keep the server alive, and limits of one client, with real sockets and real descriptors."""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tornado.iostream import IOStream

from blackhole.net import connection, direct, graceful_close, server, stream
from blackhole.net.admission import AdmissionControl
from tests.certificates import Certificate
from tests.engines import EVENT_NUMBERS
from tests.program import Program, descriptors, free_port, status, wait_for
from tests.service import Serve, Service
from tests.smtp_client import read_until_closed
from tests.transcript import REPLY_TIMEOUT

BUSY = b"421 4.3.2 Too many connections, try again later\r\n"
CROWDED = b"421 4.7.0 Too many connections from your network\r\n"
HURRIED = b"421 4.7.0 Too many new connections from your network\r\n"
FLOODED = b"421 4.7.0 Too many octets from your network, try again later\r\n"
SILENT = b"421 4.4.2 Timeout waiting for the client\r\n"


def dial(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, REPLY_TIMEOUT)


def first(client: socket.socket) -> bytes:
    """The first thing a client hears; nothing if it was hung up on."""
    with suppress(ConnectionResetError):
        return client.recv(4096)
    return b""


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Whatever is dialled is hung up at the end."""
    with ExitStack() as stack:
        yield stack


def greeted(stack: ExitStack, service: Service) -> socket.socket:
    client = stack.enter_context(dial(service.address))
    assert first(client).startswith(b"220 ")
    return client


# How many there may be


def test_client_beyond_max_connections_gets_421_at_once(
    serve: Serve, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve("--max_connections=3", "--stress_timeout=0")
    inside = [greeted(clients, service) for _ in range(3)]
    began = time.monotonic()
    for _ in range(20):
        with dial(service.address) as surplus:
            assert read_until_closed(surplus) == BUSY
    assert time.monotonic() - began < 5
    assert service.cells[EVENT_NUMBERS.reply("CONNECT", 421)] == 20
    inside[0].close()
    wait_for(lambda: service.open() == 2, "one has left")
    greeted(clients, service)
    assert [record.getMessage() for record in caplog.records] == [
        f"{service.listener}: 3 connections are open: no more are accepted"
    ]
    caplog.clear()


def test_tls_client_beyond_max_connections_is_closed_without_a_reply(
    serve: Serve, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve("--max_connections=1", secure=True)
    clients.enter_context(dial(service.address))
    wait_for(service.open, "the first is in")
    with dial(service.address) as surplus:
        assert read_until_closed(surplus) == b""
    caplog.clear()


def test_connections_are_limited_by_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert server.capacity(10000) == 192
    assert server.capacity(10) == 10


FILES = 256

SHELL = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}))
os.execv(sys.argv[1], sys.argv[1:])
"""


def limited(files: int) -> tuple[str, ...]:
    """The program, with so few descriptors."""
    from tests.program import SCRIPT

    return (SCRIPT[0], "-c", SHELL.format(files), *SCRIPT)


def processor(pid: int) -> float:
    """Seconds of processor time a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_many_clients_with_few_descriptors_are_served_or_refused(clients: ExitStack) -> None:
    """256 descriptors, 600 clients: those who fit are served, the others are told, nothing burns."""
    with Program("--workers=1", "--stress_timeout=0", command=limited(FILES)) as program:
        (worker,) = program.workers()
        before = processor(worker)
        crowd = [clients.enter_context(dial(program.address)) for _ in range(600)]
        heard = [first(client) for client in crowd]
        served = [client for client, said in zip(crowd, heard, strict=True) if said.startswith(b"220 ")]
        assert len(served) == FILES - server.RESERVED_FDS
        assert heard.count(BUSY) == len(crowd) - len(served)
        assert processor(worker) - before < 2
        served[0].sendall(b"NOOP\r\n")
        assert served[0].recv(4096) == b"250 2.0.0 OK\r\n"
        served[1].close()
        wait_for(lambda: _is_greeted(program.address), "a place was given on", 5)
        assert program.output().count("no more are accepted") == 1
        assert program.workers() == [worker]


def _is_greeted(address: tuple[str, int]) -> bool:
    with dial(address) as client:
        return first(client).startswith(b"220 ")


def test_server_survives_running_out_of_descriptors(clients: ExitStack) -> None:
    """Something else took them: the spare one is given up for a moment, to say so to each who comes."""
    # The limit of a process that has changed its user is not ours to lower.
    ours = (f"--user={os.geteuid()}", f"--group={os.getegid()}")
    with Program("--workers=1", "--max_connections=100000", *ours, command=limited(FILES)) as program:
        (worker,) = program.workers()
        served = [clients.enter_context(dial(program.address)) for _ in range(20)]
        assert all(first(client).startswith(b"220 ") for client in served)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (len(descriptors(worker)), FILES))
        before = processor(worker)
        for _ in range(200):
            with dial(program.address) as surplus:
                assert first(surplus) == BUSY
        served[0].sendall(b"NOOP\r\n")
        assert served[0].recv(4096) == b"250 2.0.0 OK\r\n"
        assert processor(worker) - before < 1
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (FILES, FILES))
        wait_for(lambda: _is_greeted(program.address), "it accepts again", 2)
        assert program.output().count("cannot accept connections: Too many open files") == 1


# How long it may take


def test_client_that_does_not_read_replies_is_closed(serve: Serve, clients: ExitStack) -> None:
    service = serve("--write_timeout=5", "--timeout=10000")
    client = socket.socket()
    clients.enter_context(client)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(service.address)
    client.settimeout(0.2)
    with suppress(TimeoutError, ConnectionError):
        while True:
            client.send(b"HELP\r\n" * 1000)
    wait_for(lambda: not service.open(), "it was closed")


def test_client_that_reads_late_is_not_closed(serve: Serve, clients: ExitStack) -> None:
    """The time is for what is to be read, and begins anew with the next command."""
    service = serve("--write_timeout=60", "--timeout=30")
    client = clients.enter_context(socket.socket())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.connect(service.address)
    client.settimeout(0.5)
    sent = 0
    with suppress(TimeoutError):
        while sent < 6 * 40000:  # the replies are seven megabytes, more than the kernel holds
            sent += client.send(b"HELP\r\n" * 1000)
    time.sleep(1)
    assert service.open() == 1
    client.settimeout(REPLY_TIMEOUT)
    threading.Timer(0.1, client.sendall, (b"\r\nQUIT\r\n",)).start()
    assert read_until_closed(client).endswith(b"221 2.0.0 Goodbye\r\n")


def deaf(address: tuple[str, int]) -> socket.socket:
    """A client that says HELP for as long as it can, and never reads."""
    client = dial(address)
    client.settimeout(0.3)
    with suppress(TimeoutError):
        while True:
            client.send(b"HELP\r\n" * 1000)
    return client


def test_clients_that_do_not_read_cost_little_memory(clients: ExitStack) -> None:
    """Reading stops while they do: their octets stay in the kernel's buffers."""
    with Program("--workers=1") as program:
        (worker,) = program.workers()
        for _ in range(2):
            clients.enter_context(deaf(program.address))
        before = int(status(worker)["VmHWM"].split()[0])
        for _ in range(4):
            clients.enter_context(deaf(program.address))
        assert int(status(worker)["VmHWM"].split()[0]) - before < 4 * 256
        assert program.workers() == [worker]


def test_tls_handshake_has_a_deadline(serve: Serve, clients: ExitStack) -> None:
    service = serve("--tls_timeout=3", "--timeout=10000", secure=True)
    client = clients.enter_context(dial(service.address))
    client.sendall(b"\x16\x03\x01")
    assert read_until_closed(client) == b""
    wait_for(lambda: not service.open(), "it was closed")


def test_handshake_after_starttls_has_a_deadline(
    serve: Serve, clients: ExitStack, certificate: Certificate
) -> None:
    service = serve(
        f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", "--tls_timeout=3", "--timeout=10000"
    )
    client = greeted(clients, service)
    client.sendall(b"STARTTLS\r\n")
    assert read_until_closed(client) == b"220 2.0.0 Ready to start TLS\r\n"


def test_body_slower_than_min_data_rate_times_out(serve: Serve, clients: ExitStack) -> None:
    """An octet now and then refills nothing to speak of."""
    service = serve("--trusted=none", "--min_data_rate=500", "--timeout=10")
    client = greeted(clients, service)
    client.sendall(b"DATA\r\n")
    assert first(client).startswith(b"354 ")
    client.settimeout(0.1)
    heard = b""
    until = time.monotonic() + REPLY_TIMEOUT
    while not heard and time.monotonic() < until:
        with suppress(TimeoutError):
            client.sendall(b"x")
            heard = client.recv(4096)
    assert heard == SILENT


def test_body_at_min_data_rate_does_not_time_out(serve: Serve, clients: ExitStack) -> None:
    service = serve("--trusted=none", "--min_data_rate=500", "--timeout=10")
    client = greeted(clients, service)
    client.sendall(b"DATA\r\n")
    assert first(client).startswith(b"354 ")
    for _ in range(25):
        client.sendall(b"x" * 5000)
        time.sleep(0.1)
    client.sendall(b"\r\n.\r\n")
    assert first(client).startswith(b"250 ")


def test_session_timeout_ends_a_busy_session(serve: Serve, clients: ExitStack) -> None:
    service = serve("--trusted=none", "--session_timeout=10")
    client = greeted(clients, service)
    heard = b""
    until = time.monotonic() + REPLY_TIMEOUT
    while b"421" not in heard and time.monotonic() < until:
        with suppress(ConnectionError):
            client.sendall(b"NOOP\r\n")
            heard += client.recv(4096)
    assert heard.endswith(b"421 4.4.2 The session has lasted too long, closing\r\n")


def test_stress_shortens_client_timeouts(
    serve: Serve, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """From 90 % of the connections on, until there are less than 70 %."""
    service = serve("--max_connections=10", "--stress_timeout=5", "--timeout=10000")
    crowd = [greeted(clients, service) for _ in range(8)]
    time.sleep(1)
    assert (service.open(), service.server.context.stressed) == (8, False)
    patient = greeted(clients, service)
    assert [read_until_closed(client) for client in crowd] == [SILENT] * 8
    wait_for(lambda: not service.server.context.stressed, "it is over")
    time.sleep(1)
    patient.sendall(b"NOOP\r\n")
    assert first(patient) == b"250 2.0.0 OK\r\n"
    assert len(caplog.records) == 1
    caplog.clear()


def test_stress_requires_a_data_rate(
    serve: Serve, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve("--max_connections=1", "--stress_timeout=5")
    client = greeted(clients, service)
    client.sendall(b"DATA\r\n")
    assert first(client).startswith(b"354 ")
    client.settimeout(0.1)
    heard = b""
    until = time.monotonic() + REPLY_TIMEOUT
    while not heard and time.monotonic() < until:
        with suppress(TimeoutError):
            client.sendall(b"x")
            heard = client.recv(4096)
    assert heard == SILENT
    caplog.clear()


def test_stress_lowers_error_limits(
    serve: Serve, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """As Postfix has it: a mistake is one too many then. A client may say EHLO before and behind STARTTLS."""
    service = serve("--trusted=none", "--max_connections=4", "--max_errors=20", "--max_junk=100")
    early = greeted(clients, service)
    early.sendall(b"XYZZY\r\n")
    assert first(early).startswith(b"500 ")
    crowd = [greeted(clients, service) for _ in range(3)]
    wait_for(lambda: service.server.context.stressed, "places are running out")
    for client, said, codes in (
        (crowd[0], b"EHLO c.test\r\n" * 2 + b"NOOP\r\n", [b"250", b"250", b"421"]),
        (crowd[1], b"XYZZY\r\n", [b"421"]),
        (early, b"NOOP\r\nNOOP\r\nXYZZY\r\n", [b"250", b"250", b"421"]),
    ):
        client.sendall(said)
        heard = [line[:3] for line in read_until_closed(client).splitlines() if line[3:4] == b" "]
        assert heard == codes
    wait_for(lambda: not service.server.context.stressed, "it is over")
    crowd[2].sendall(b"XYZZY\r\n" * 19)
    heard = [first(crowd[2])]
    while b"".join(heard).count(b"\n") < 19:
        heard.append(first(crowd[2]))
    assert b"421" not in b"".join(heard)
    caplog.clear()


# Who may


def test_client_connections_limit_holds(serve: Serve, clients: ExitStack) -> None:
    service = serve("--trusted=none", "--client_connections=5")
    inside = [greeted(clients, service) for _ in range(5)]
    for _ in range(10):
        with dial(service.address) as surplus:
            assert read_until_closed(surplus) == CROWDED
    assert service.cells[EVENT_NUMBERS.reply("CONNECT", 421)] == 10
    inside[0].close()
    wait_for(lambda: service.open() == 4, "one has left")
    greeted(clients, service)


def test_client_connection_rate_limit_holds(serve: Serve) -> None:
    service = serve("--trusted=none", "--client_connection_rate=5")
    heard = []
    for _ in range(8):
        with dial(service.address) as client:
            heard.append(first(client))
    assert [said == HURRIED for said in heard] == [False] * 5 + [True] * 3


def test_trusted_client_has_no_limits(serve: Serve, clients: ExitStack) -> None:
    service = serve("--public", "--client_connections=2", "--max_errors=2", "--client_connection_rate=1")
    for _ in range(5):
        client = greeted(clients, service)
        client.sendall(b"XYZZY\r\n" * 20)
        client.sendall(b"QUIT\r\n")
        assert read_until_closed(client).endswith(b"221 2.0.0 Goodbye\r\n")


def test_client_byte_rate_limit_holds(serve: Serve, clients: ExitStack) -> None:
    """Those of all connections of a client, and of those that are over too."""
    service = serve("--trusted=none", "--client_byte_rate=300000")
    brief, other, idle = (greeted(clients, service) for _ in range(3))
    for client in (brief, other):
        client.sendall(b"DATA\r\n")
        assert first(client).startswith(b"354 ")
        client.sendall(b"x" * 140000 + b"\r\n.\r\n")
        assert first(client).startswith(b"250 ")
    brief.close()
    wait_for(lambda: service.open() == 2, "it has left")
    other.sendall(b"DATA\r\n")
    assert first(other).startswith(b"354 ")
    other.sendall(b"x" * 140000)
    assert read_until_closed(other) == FLOODED
    with dial(service.address) as late:
        assert first(late) == FLOODED
    idle.sendall(b"NOOP\r\n")
    assert read_until_closed(idle).endswith(FLOODED)


def test_client_message_and_recipient_rate_limits_hold(serve: Serve, clients: ExitStack) -> None:
    service = serve("--trusted=none", "--client_message_rate=2", "--client_recipient_rate=3")
    said = b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\n"
    codes = []
    for _ in range(4):  # each in a session of its own: they are counted together
        client = greeted(clients, service)
        client.sendall(said)
        heard = b""
        while heard.count(b"\n") < 3:
            heard += client.recv(4096)
        codes.append([line[:9] for line in heard.splitlines()])
    assert codes[:2] == [[b"250 2.1.0", b"250 2.1.5", b"354 Start"]] * 2
    assert codes[2] == [b"250 2.1.0", b"250 2.1.5", b"450 4.7.1"]
    assert codes[3] == [b"250 2.1.0", b"450 4.7.1", b"450 4.7.1"]
    client.sendall(b"RCPT TO:<bob@example.com>\r\n")
    assert first(client) == b"450 4.7.1 Too many recipients from your network, try again later\r\n"
    client.sendall(b"DATA\r\n")
    assert first(client) == b"450 4.7.1 Too many messages from your network, try again later\r\n"


def test_client_tls_rate_limit_holds_for_starttls(
    serve: Serve, clients: ExitStack, certificate: Certificate
) -> None:
    service = serve(
        f"--ssl_cert={certificate.cert}",
        f"--ssl_key={certificate.key}",
        "--trusted=none",
        "--client_tls_rate=1",
    )
    for wanted in (
        b"220 2.0.0 ",
        b"454 4.7.0 Too many TLS handshakes from your network, try again later\r\n",
    ):
        client = greeted(clients, service)
        client.sendall(b"STARTTLS\r\n")
        assert first(client).startswith(wanted)


def test_client_tls_rate_limit_holds_for_implicit_tls(
    serve: Serve, clients: ExitStack, certificate: Certificate
) -> None:
    service = serve("--trusted=none", "--client_tls_rate=1", secure=True)
    client = certificate.client.wrap_socket(
        clients.enter_context(dial(service.address)), server_hostname="mx.test"
    )
    clients.enter_context(client)
    assert first(client).startswith(b"220 ")
    assert read_until_closed(clients.enter_context(dial(service.address))) == b""


def test_workers_count_together(clients: ExitStack) -> None:
    """Six connections of a client over three workers are six, and a killed worker's are forgotten."""
    port = free_port()
    with Program(
        "--workers=3", f"--listen=127.0.0.1:{port}", "--trusted=none", "--client_connections=6"
    ) as program:
        time.sleep(1.5)  # they look once a second who the others are
        inside = [clients.enter_context(dial(("127.0.0.1", port))) for _ in range(6)]
        assert all(first(client).startswith(b"220 ") for client in inside)
        for _ in range(6):
            assert read_until_closed(clients.enter_context(dial(("127.0.0.1", port)))) == CROWDED
        for client in inside:
            client.close()
        wait_for(lambda: _is_greeted(("127.0.0.1", port)), "there is room again", 5)
        assert "Traceback" not in program.output()


# Faults


class Broken(Exception):
    """Not a client's doing."""


def trip(*_: object, **__: object) -> object:
    raise Broken


async def stumble(*_: object, **__: object) -> object:
    raise Broken


INTERNAL = b"421 4.3.0 Internal error, closing transmission channel\r\n"


def sockets() -> int:
    """Those that this process has."""
    return sum(what.startswith("socket:") for what in descriptors(os.getpid()))


@pytest.mark.parametrize(
    ("where", "said", "wanted"),
    [
        ("_greet", b"", INTERNAL),
        ("_drain", b"", b""),
        ("shutdown_write", b"GET /\r\n", b"221 2.7.0 This is an SMTP server. Goodbye\r\n" + INTERNAL),
        ("sleep", b"NOOP\r\n" * 400, INTERNAL),
        ("wait_for_client_hello", b"STARTTLS\r\n", b"220 2.0.0 Ready to start TLS\r\n"),
        ("admit", b"", INTERNAL),
    ],
)
def test_exception_at_any_await_closes_one_connection_only(
    serve: Serve,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    said: bytes,
    wanted: bytes,
) -> None:
    """One traceback, 421 where it can still be said, the descriptor back, and everybody else is served."""
    service = serve(
        f"--ssl_cert={certificate.cert}",
        f"--ssl_key={certificate.key}",
        "--trusted=none",
        "--max_errors=100",
    )
    with ExitStack() as stack, monkeypatch.context() as patch:
        other = greeted(stack, service)
        before = sockets()
        service.do(lambda: None)  # whoever was greeted is waited for by now
        if where == "sleep":
            patch.setattr(connection.asyncio, "sleep", stumble)
        elif where == "admit":
            patch.setattr(AdmissionControl, "admit", trip)
        elif where == "_drain":
            patch.setattr(direct, "write", lambda *_: 0)
            patch.setattr(IOStream, "write_to_fd", lambda *_: 0)
            patch.setattr(connection.Connection, where, stumble)
        elif where == "_greet":
            patch.setattr(connection.Connection, where, trip)
        elif where == "wait_for_client_hello":
            patch.setattr(stream, where, stumble)
        else:
            patch.setattr(graceful_close, where, trip)
        with dial(service.address) as client:
            client.sendall(said)
            heard = read_until_closed(client)
        patch.undo()
        assert heard.endswith(wanted)
        wait_for(lambda: service.open() == 1, "it is gone")
        assert sockets() == before
        other.sendall(b"NOOP\r\n")
        assert first(other) == b"250 2.0.0 OK\r\n"
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [Broken]
    caplog.clear()


def test_bare_newlines_are_counted_as_violations(serve: Serve, clients: ExitStack) -> None:
    """A command is one, and a message is one however many it has."""
    service = serve("--bare_newline=count")
    client = greeted(clients, service)
    client.sendall(b"NOOP\nDATA\r\na\nb\nc\r\n.\r\nDATA\r\nnone\r\n.\r\nQUIT\r\n")
    assert read_until_closed(client).endswith(b"221 2.0.0 Goodbye\r\n")
    assert service.stats.snapshot().violations["bare-lf"] == 2


def test_public_server_logs_no_line_per_connection(
    serve: Serve, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    """What a client can bring about is a line of the log only where few clients are."""
    caplog.set_level(logging.INFO)
    for public in (False, True):
        service = serve(f"--public={'yes' if public else 'no'}", secure=True)
        with dial(service.address) as client:
            client.sendall(b"HELO client.test\r\n")
            read_until_closed(client)
        wait_for(lambda: not service.open(), "it is gone")  # noqa: B023
        said = [record for record in caplog.records if record.name.startswith("blackhole")]
        assert len(said) == (0 if public else 1)
        caplog.clear()
