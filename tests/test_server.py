"""Every transcript against a server in this process, on real sockets, line by line, plain and under TLS."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from blackhole.metrics.layout import CELL_INDEX
from blackhole.net import stream
from blackhole.net.handshake import handshake
from blackhole.settings import ACCELERATORS
from blackhole.smtp.state import PHASES
from tests.certificates import Certificate
from tests.engines import EVENT_NUMBERS, without_compiled_modules
from tests.program import Program, scenario_option, wait_for
from tests.service import Serve, Service
from tests.smtp_client import SMTPClient, read_until_closed, reset_on_close
from tests.transcript import (
    PIPELINING_VIOLATIONS,
    REPLY_TIMEOUT,
    SocketPeer,
    Transcript,
    all_transcripts,
    play,
)

TRANSCRIPTS = all_transcripts()


@pytest.fixture(params=[ACCELERATORS, frozenset()], ids=["fast", "simple"])
def accelerators(request: pytest.FixtureRequest) -> frozenset[str]:
    """Run each test with all accelerators, and with none."""
    return frozenset(request.param)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_transcript_on_a_socket(transcript: Transcript, serve: Serve, certificate: Certificate) -> None:
    service = serve(*transcript.argv(certificate.cert, certificate.key)[1:], secure=transcript.implicit_tls)
    with SocketPeer(service.address, certificate.client) as peer:
        play(transcript, peer)
    if transcript.violations is not None:
        service.settle()
        wanted = Counter(rule for rule in transcript.violations if rule not in PIPELINING_VIOLATIONS)
        counted = service.stats.snapshot().violations
        assert {
            rule: count for rule, count in counted.items() if count and rule not in PIPELINING_VIOLATIONS
        } == wanted


@pytest.mark.without_coverage
@pytest.mark.parametrize("transcript", [one for one in TRANSCRIPTS if one.path.parent.name != "tls"], ids=str)
def test_transcript_under_tls(transcript: Transcript, serve: Serve, certificate: Certificate) -> None:
    """TLS changes nothing of what is said. Those of the folder tls say themselves when it begins."""
    service = serve(*transcript.argv(certificate.cert, certificate.key)[1:], secure=True)
    with SocketPeer(service.address, certificate.client) as peer:
        peer.start_tls()
        play(transcript, peer)


def connect(service: Service | Program) -> socket.socket:
    """A client of a plain service, greeted."""
    client = socket.create_connection(service.address, REPLY_TIMEOUT)
    assert client.recv(4096).startswith(b"220 ")
    return client


def test_input_during_a_delayed_starttls_is_never_executed_under_tls(
    serve: Serve, certificate: Certificate
) -> None:
    """CVE-2011-0411, with a command that arrives while the reply to STARTTLS waits."""
    service = serve("--delay=0.5", f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}")
    with connect(service) as client:
        client.sendall(b"STARTTLS\r\n")
        time.sleep(0.2)
        client.sendall(b"HELO eve.test\r\n")
        reply = client.recv(4096)
        if reply.startswith(b"220 "):
            client.settimeout(2)
            with (
                suppress(ssl.SSLError, ConnectionError),
                certificate.client.wrap_socket(client, server_hostname="mx.test") as secure,
            ):
                assert secure.recv(4096) == b""
        else:
            assert reply.startswith(b"554 5.5.0 ")
            assert read_until_closed(client) == b""


def test_input_before_the_handshake_closes_the_connection(serve: Serve, certificate: Certificate) -> None:
    service = serve(f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}")
    with connect(service) as client:
        client.sendall(b"STARTTLS\r\n")
        assert client.recv(4096).startswith(b"220 ")
        client.sendall(b"HELO eve.test\r\n")
        assert b"250" not in read_until_closed(client)


def test_delay_of_one_client_does_not_delay_others(serve: Serve) -> None:
    """Forty clients wait half a second each, all at the same time."""
    service = serve("--delay=0.5")
    clients = [connect(service) for _ in range(40)]
    began = time.monotonic()
    for client in clients:
        client.sendall(b"NOOP\r\n")
    for client in clients:
        assert client.recv(4096) == b"250 2.0.0 OK\r\n"
        client.close()
    assert 0.5 <= time.monotonic() - began < 10


def test_client_that_closes_during_a_delay_is_released(serve: Serve) -> None:
    service = serve("--delay=600")
    client = connect(service)
    client.sendall(b"NOOP\r\n")
    time.sleep(0.05)
    assert service.open() == 1
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("flood", [b"NOOP\r\n" * 10000, b"x" * 65536], ids=["commands", "body"])
def test_client_that_sends_without_pause_does_not_delay_others(serve: Serve, flood: bytes) -> None:
    service = serve("--message_size_limit=0")
    busy = connect(service)
    if flood.startswith(b"x"):
        busy.sendall(b"DATA\r\n")
    over = threading.Event()

    def send() -> None:
        with suppress(OSError):
            while not over.is_set():
                busy.sendall(flood)

    def read() -> None:
        with suppress(OSError):
            while busy.recv(1 << 20):
                pass

    threads = [threading.Thread(target=send), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        with connect(service) as client:
            for _ in range(20):
                client.sendall(b"NOOP\r\n")
                assert client.recv(4096) == b"250 2.0.0 OK\r\n"
    finally:
        over.set()
        busy.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(REPLY_TIMEOUT)
        busy.close()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_server_stops_reading_from_a_client_that_does_not_read(
    serve: Serve, certificate: Certificate, secure: bool
) -> None:
    """What it sends stays in the kernel's buffers; once it reads, every command has had its reply."""
    service = serve(secure=secure)
    for listening in service.sockets:  # the accepted socket inherits it; the kernel would hold megabytes
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    client.settimeout(REPLY_TIMEOUT)
    client.connect(service.address)
    if secure:
        client = certificate.client.wrap_socket(client, server_hostname="mx.test")
    client.settimeout(0.5)
    block = b"NOOP\r\n" * 1000
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 64 << 20:
            sent += client.send(block[sent % 6 :])
    left, heard = block[sent % 6 :] + b"QUIT\r\n", b""
    commands = sent // 6 + left.count(b"\n")
    client.settimeout(0)
    until = time.monotonic() + REPLY_TIMEOUT
    while not heard.endswith(b"221 2.0.0 Goodbye\r\n") and time.monotonic() < until:
        poll = select.poll()  # select() knows no descriptor above 1023, and a test before may have left many
        poll.register(client, select.POLLIN | (select.POLLOUT if left else 0))
        poll.poll(1000)
        with suppress(BlockingIOError, ssl.SSLWantReadError):
            heard += client.recv(1 << 20)
        with suppress(BlockingIOError, ssl.SSLWantWriteError):
            left = left[client.send(left) :] if left else b""
    assert heard.count(b"\n") == commands + 1
    client.close()


def test_silent_client_times_out(serve: Serve) -> None:
    service = serve("--timeout=5")
    with connect(service) as client:
        assert read_until_closed(client) == b"421 4.4.2 Timeout waiting for the client\r\n"


def test_client_that_completes_no_command_times_out(serve: Serve) -> None:
    """An octet now and then is no command: the time is for the command, not for each read."""
    service = serve("--timeout=5")
    with connect(service) as client:
        client.settimeout(0.1)
        heard = b""
        until = time.monotonic() + REPLY_TIMEOUT
        while not heard and time.monotonic() < until:
            with suppress(TimeoutError):
                client.sendall(b"x")
                heard = client.recv(4096)
        assert heard == b"421 4.4.2 Timeout waiting for the client\r\n"


def test_active_client_does_not_time_out(serve: Serve) -> None:
    """Commands and pieces of a body, each well within the time; all of it together is not."""
    service = serve("--timeout=10")
    with connect(service) as client:
        for _ in range(15):
            time.sleep(0.1)
            client.sendall(b"NOOP\r\n")
            assert client.recv(4096) == b"250 2.0.0 OK\r\n"
        client.sendall(b"DATA\r\n")
        assert client.recv(4096).startswith(b"354 ")
        for _ in range(15):
            time.sleep(0.1)
            client.sendall(b"x\r\n")
        client.sendall(b".\r\n")
        assert client.recv(4096).startswith(b"250 ")


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01", b"EHLO x\r\n"], ids=["nothing", "half", "plain"])
def test_unfinished_handshake_times_out(serve: Serve, said: bytes) -> None:
    service = serve("--timeout=5", secure=True)
    with socket.create_connection(service.address, REPLY_TIMEOUT) as client:
        client.sendall(said)
        assert b"220" not in read_until_closed(client)


def test_half_closed_client_gets_all_replies(serve: Serve) -> None:
    service = serve()
    with connect(service) as client:
        client.sendall(b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\nHello\r\n.\r\n")
        client.shutdown(socket.SHUT_WR)
        assert [line[:3] for line in read_until_closed(client).splitlines()] == [
            b"250",
            b"250",
            b"354",
            b"250",
        ]


def test_half_closed_client_gets_delayed_replies(serve: Serve) -> None:
    service = serve("--delay=0.1")
    with connect(service) as client:
        client.sendall(b"HELO client.test\r\nNOOP\r\n")
        client.shutdown(socket.SHUT_WR)
        assert read_until_closed(client) == b"250 mx.test\r\n250 2.0.0 OK\r\n"


def test_half_closed_client_with_unread_input_gets_delayed_replies(serve: Serve) -> None:
    service = serve()
    with connect(service) as client:
        began = time.monotonic()
        client.sendall(DELAYED % b"0.3" + b"NOOP\r\n")
        time.sleep(0.05)
        client.sendall(b"NOOP\r\n")
        client.shutdown(socket.SHUT_WR)
        codes = [line[:3] for line in read_until_closed(client).splitlines()]
        assert codes == [b"250", b"250", b"354", b"250", b"250", b"250"]
        assert time.monotonic() - began >= 0.3


DELAYED = (
    b"MAIL FROM:<ann@example.com>\r\nRCPT TO:<bob@example.com>\r\nDATA\r\n"
    b"X-Blackhole-Delay: %s\r\n\r\nHello\r\n.\r\n"
)


def leave_in_a_delay(service: Service, certificate: Certificate | None, unread: bytes, reset: bool) -> None:
    """Send a message whose reply takes a minute, and close the connection before."""
    client: socket.socket = socket.create_connection(service.address, REPLY_TIMEOUT)
    if certificate is not None:
        client = certificate.client.wrap_socket(client, server_hostname="mx.test")
    with client:
        assert client.recv(4096).startswith(b"220 ")
        client.sendall(DELAYED % b"60" + unread)
        heard = b""
        while b"354 " not in heard:
            heard += client.recv(4096)
        if unread:
            client.sendall(unread)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("unread", [b"", b"N"], ids=["nothing", "unread"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_place_of_a_client_that_left_in_a_delay_is_free_soon(
    serve: Serve, certificate: Certificate, secure: bool, unread: bytes, reset: bool
) -> None:
    service = serve(secure=secure)
    began = time.monotonic()
    for _ in range(5):
        leave_in_a_delay(service, certificate if secure else None, unread, reset)
    wait_for(lambda: service.open() == 0, "all are gone", 5)
    assert time.monotonic() - began < 5


def test_clients_that_left_in_a_delay_make_room_for_new_ones(serve: Serve) -> None:
    service = serve("--max_connections=20", "--stress_timeout=0")
    for _ in range(60):
        leave_in_a_delay(service, None, b"N", reset=False)
    with connect(service):
        pass


def test_under_stress_half_closed_clients_in_a_delay_are_ended_first(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    service = serve("--max_connections=10")
    with ExitStack() as stack:
        stays = stack.enter_context(connect(service))
        stays.sendall(DELAYED % b"1.5")
        closed = [stack.enter_context(connect(service)) for _ in range(8)]
        for client in closed:
            client.sendall(DELAYED % b"60")
            client.shutdown(socket.SHUT_WR)
        began = time.monotonic()
        for client in closed:
            assert read_until_closed(client).count(b"\r\n") == 3
        assert time.monotonic() - began < 1
        heard = b""
        while heard.count(b"\r\n") < 4:
            heard += stays.recv(4096)
    caplog.clear()


def test_final_reply_arrives_while_the_client_keeps_sending(serve: Serve) -> None:
    """Closing a socket with unread octets in it resets the connection, and the reset overtakes the reply."""
    service = serve()
    with connect(service) as client:
        client.sendall(b"GET / HTTP/1.1\r\n" + b"Cookie: x\r\n" * 20000)
        assert read_until_closed(client) == b"221 2.7.0 This is an SMTP server. Goodbye\r\n"


RUDE = [b"", b"HE", b"HELO x\r\n", b"DATA\r\n", b"DATA\r\nbody\r\n", b"DATA\r\n\r\n.", b"NOOP\r\n" * 5000]


# A reset in the middle of ssl.SSLSocket's construction leaves the closing to its destructor, which complains.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_clients_that_break_off_leave_nothing_behind(
    serve: Serve, certificate: Certificate, secure: bool
) -> None:
    """Each leaves in another state, by a close or by a reset, and no descriptor stays open."""
    service = serve(secure=secure)
    gc.collect()  # the figures of services that are gone have a descriptor each
    before = len(os.listdir("/proc/self/fd"))
    for said in RUDE * 4:
        for linger in (struct.pack("ii", 0, 0), struct.pack("ii", 1, 0)):
            client: socket.socket = socket.create_connection(service.address, REPLY_TIMEOUT)
            if secure and said:
                client = certificate.client.wrap_socket(client, server_hostname="mx.test")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.sendall(said)
            client.close()
    # No collection while the server works: it keeps the server's thread waiting, for seconds altogether.
    wait_for(lambda: service.open() == 0, "all are gone")

    def nothing_is_left() -> bool:
        if len(os.listdir("/proc/self/fd")) > before:
            gc.collect()
            time.sleep(0.2)
        return len(os.listdir("/proc/self/fd")) <= before

    wait_for(nothing_is_left, "all descriptors are closed")


def test_retry_under_starttls_is_recognized(serve: Serve, certificate: Certificate, tmp_path: Path) -> None:
    """For that the local address is asked for, which the stream before STARTTLS does not have any more."""
    text = '[[rule]]\nphase = "."\nattempt = "<= 2"\nreply = "450 4.2.0 Later"\n'
    service = serve(scenario_option(tmp_path, text), *certificate.options)
    for code in ("450", "450", "250"):
        with SMTPClient(service.address) as client:
            client.command("EHLO client.test")
            client.starttls()
            reply = client.send_message(b"Message-ID: <1@client.test>\r\n\r\nHello\r\n")
            assert reply[:3] == code
            assert client.command_code("QUIT") == "221"
    assert service.stats.snapshot().violations["retried-at-once"] == 1


def test_client_that_resets_at_the_end_of_a_tls_handshake_leaves_nothing_behind(
    serve: Serve, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream whose client is gone when it is made must not wait for an event that never comes."""

    async def handshake_and_reset(secure: ssl.SSLSocket) -> None:
        await handshake(secure)
        is_complete.set()
        with suppress(OSError):
            while secure.getpeername():
                await asyncio.sleep(0.01)

    is_complete = threading.Event()
    monkeypatch.setattr(stream, "handshake", handshake_and_reset)
    service = serve(secure=True)
    with (
        socket.create_connection(service.address, REPLY_TIMEOUT) as plain,
        certificate.client.wrap_socket(plain, server_hostname="mx.test") as client,
    ):
        assert is_complete.wait(REPLY_TIMEOUT)
        reset_on_close(client)
    service.settle()
    assert service.open() == 0


def test_server_recovers_from_running_out_of_descriptors(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log; old clients are served, new ones are told."""
    service = serve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with connect(service) as old, socket.socket() as new:
        new.settimeout(REPLY_TIMEOUT)
        used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        spare = [os.dup(0) for _ in range(used - len(os.listdir("/proc/self/fd")))]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (new.fileno() + 1, hard))
            while True:
                try:
                    spare.append(os.dup(0))
                except OSError:
                    break
            new.connect(service.address)
            assert new.recv(4096) == b"421 4.3.2 Too many connections, try again later\r\n"
            old.sendall(b"NOOP\r\n")
            assert old.recv(4096) == b"250 2.0.0 OK\r\n"
            time.sleep(0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in spare:
                os.close(descriptor)
        with connect(service):
            pass
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{service.listener}: cannot accept connections: Too many open files"]
    caplog.clear()


@without_compiled_modules
def test_internal_error_closes_one_connection_only(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """The client hears 421, the log has the traceback, and everybody else is served."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a fault")

    service = serve()
    service.server.engine.commands[b"VRFY"].do = fail  # type: ignore[misc, assignment]
    with connect(service) as client, connect(service) as other:
        client.sendall(b"VRFY bob\r\n")
        assert read_until_closed(client) == b"421 4.3.0 Internal error, closing transmission channel\r\n"
        other.sendall(b"NOOP\r\n")
        assert other.recv(4096) == b"250 2.0.0 OK\r\n"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    caplog.clear()


def test_stopping_server_lets_a_message_finish(serve: Serve) -> None:
    service = serve()
    with connect(service) as idle, connect(service) as busy:
        busy.sendall(b"DATA\r\n")
        assert busy.recv(4096).startswith(b"354 ")
        service.do(service.server.stop_accepting)
        service.do(service.server.drain)
        assert read_until_closed(idle) == b"421 4.3.2 Server is stopping, try again later\r\n"
        with pytest.raises(ConnectionRefusedError):
            connect(service)
        busy.sendall(b"Hello\r\n.\r\n")
        assert busy.recv(4096).startswith(b"250 ")
        service.do(service.server.drain)
        assert read_until_closed(busy) == b"421 4.3.2 Server is stopping, try again later\r\n"


def test_replies_are_counted(serve: Serve) -> None:
    service = serve("--message_size_limit=10")
    said = b"EHLO x\r\nXYZZY\r\nDATA\r\nHello\r\n.\r\nDATA\r\nToo large, this\r\n.\r\nNOOP\r\nQUIT\r\n"
    with connect(service) as client:
        client.sendall(said)
        read_until_closed(client)
    wanted = {
        ("CONNECT", 220): 1,
        ("EHLO", 250): 1,
        ("other", 500): 1,
        ("DATA", 354): 2,
        (".", 250): 1,
        (".", 552): 1,
        ("NOOP", 250): 1,
        ("QUIT", 221): 1,
    }
    counted = {
        (phase, code): service.cells[EVENT_NUMBERS.reply(phase, code)]
        for phase in PHASES
        for code in range(200, 600)
        if service.cells[EVENT_NUMBERS.reply(phase, code)]
    }
    assert counted == wanted
    assert service.cells[CELL_INDEX["received_bytes"]] == len(said)


def test_replies_under_tls_are_not_delayed(serve: Serve, certificate: Certificate) -> None:
    """A greeting behind a handshake would wait 40 ms for the client's acknowledgement without it."""
    service = serve(secure=True)
    with SocketPeer(service.address, certificate.client) as peer:
        peer.start_tls()
        assert peer.read_line() is not None
        (client,) = service.server.connections
        assert client.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
