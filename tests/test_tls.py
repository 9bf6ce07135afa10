"""TLS as OpenSSL's own client sees it: what is spoken, and what a client cannot get away with."""

from __future__ import annotations

import logging
import re
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from blackhole.metrics.layout import CELL_INDEX, VIOLATION_NUMBERS, VIOLATIONS_START
from blackhole.net.tls import make_context
from blackhole.settings import ACCELERATORS, OperatorError
from tests.certificates import Certificate, read_certificate
from tests.external_programs import requires
from tests.program import Program, free_port, run, wait_for
from tests.service import Serve
from tests.smtp_client import SMTPClient

pytestmark = requires("openssl")


@pytest.fixture(params=[ACCELERATORS, frozenset()], ids=["fast", "simple"])
def accelerators(request: pytest.FixtureRequest) -> frozenset[str]:
    """Run each test with all accelerators, and with none."""
    return frozenset(request.param)


@pytest.fixture(scope="module")
def secure(certificate: Certificate) -> Iterator[tuple[Program, int]]:
    """The program, and its port where TLS comes first."""
    port = free_port()
    with Program(
        f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", f"--ssl_port={port}"
    ) as program:
        yield program, port
        assert "Traceback" not in program.output()


def s_client(port: int, *options: str, said: str = "QUIT\r\n") -> str:
    """What `openssl s_client` says of its handshake, and hears."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-ign_eof", *options],
        input=said,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "starttls"])
def test_tls_1_2_and_1_3_are_accepted(
    secure: tuple[Program, int], certificate: Certificate, version: str, first: bool
) -> None:
    program, port = secure
    options = [] if first else ["-starttls", "smtp"]
    output = s_client(port if first else program.port, version, "-CAfile", certificate.ca, *options)
    assert "Verify return code: 0 (ok)" in output
    assert "221 2.0.0 Goodbye" in output
    assert "Compression: NONE" in output


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_tls_1_1_and_older_are_refused(secure: tuple[Program, int], version: str) -> None:
    output = s_client(secure[1], version, "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in output
    assert "220 " not in output


@pytest.mark.parametrize(
    "cipher", ["aNULL", "eNULL", "RC4", "3DES", "EXPORT", "MD5", "PSK", "SRP", "kRSA", "SHA256"]
)
def test_weak_ciphers_are_refused(secure: tuple[Program, int], cipher: str) -> None:
    output = s_client(secure[1], "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
    assert "Cipher is (NONE)" in output or "no cipher match" in output or "Error with command" in output


def test_no_renegotiation(secure: tuple[Program, int]) -> None:
    """CVE-2009-3555, and the load that asking for it all the time would be. An R alone asks for it."""
    with subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{secure[1]}", "-tls1_2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        output = b""
        while b"220 " not in output:
            output += process.stdout.readline()
        process.stdin.write(b"R\n")
        process.stdin.flush()
        output = process.stdout.read()
        assert b"RENEGOTIATING" in output
        assert b"no renegotiation" in output


def test_alpn_protocol_of_the_server(secure: tuple[Program, int]) -> None:
    """ALPACA: a browser that was led here is told, if it asks, that this is no web server."""
    assert "ALPN protocol: smtp" in s_client(secure[1], "-alpn", "smtp")
    assert "ALPN protocol: http" not in s_client(secure[1], "-alpn", "http/1.1")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_any_worker_resumes_a_tls_session(secure: tuple[Program, int], tmp_path: Path, version: str) -> None:
    ticket = str(tmp_path / "ticket")
    assert "New, TLS" in s_client(secure[1], version, "-sess_out", ticket)
    assert all("Reused, TLS" in s_client(secure[1], version, "-sess_in", ticket) for _ in range(4))


def test_server_sends_nothing_between_the_reply_and_the_handshake(
    serve: Serve, certificate: Certificate
) -> None:
    """What comes in the clear after the 220 is no command and is never answered."""
    service = serve(f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}")
    with socket.create_connection(service.address, 20) as client:
        client.recv(4096)
        client.sendall(b"STARTTLS\r\n")
        assert client.recv(4096) == b"220 2.0.0 Ready to start TLS\r\n"
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(20)
        client.sendall(b"EHLO client.test\r\n")
        rest = b""
        with suppress(ConnectionResetError):
            while data := client.recv(4096):
                rest += data
        assert b"250" not in rest


def test_byte_order_mark_before_certificate_and_key_is_skipped(
    certificate: Certificate, tmp_path: Path
) -> None:
    paths = []
    for name, original in (("cert", certificate.cert), ("key", certificate.key)):
        path = tmp_path / name
        path.write_bytes("\N{BYTE ORDER MARK}".encode() + Path(original).read_bytes())
        path.chmod(0o600)
        paths.append(f"--ssl_{name}={path}")
    done = run("-t", *paths)
    assert (done.returncode, done.stderr) == (0, "")


def test_handshake_in_small_segments_succeeds(serve: Serve, certificate: Certificate) -> None:
    service = serve(secure=True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = certificate.client.wrap_bio(incoming, outgoing, server_hostname="mx.test")
    with socket.create_connection(service.address, 20) as wire:
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        heard = b""
        while not heard:
            with suppress(ssl.SSLWantReadError):
                client.do_handshake()
                heard = client.read(4096)
            for octet in outgoing.read():
                wire.sendall(bytes((octet,)))
            if not heard:
                incoming.write(wire.recv(65536))
        assert heard.startswith(b"220 ")


def greeting_of(certificate: Certificate) -> bytes:
    """The ClientHello of a client that speaks TLS."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        certificate.client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="mx.test").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("length", "begun"), [(0, False), (1, False), (4, False), (5, False), (200, False), (0xFFFF, True)]
)
def test_handshake_begins_only_with_a_whole_client_hello(
    serve: Serve, certificate: Certificate, length: int, begun: bool
) -> None:
    """It takes 40 KiB from the moment it begins, which whoever stalls would have cost."""
    service = serve(secure=True)
    with socket.create_connection(service.address, 20) as wire:
        wire.sendall(greeting_of(certificate)[:length])
        wait_for(lambda: service.open(), "it is there")
        time.sleep(0.1)
        (connection,) = service.server.connections
        assert isinstance(connection.stream.socket, ssl.SSLSocket) is begun


@pytest.mark.parametrize("shaken", [False, True], ids=["in the handshake", "behind it"])
def test_client_that_stops_in_a_handshake_does_not_delay_others(
    serve: Serve, certificate: Certificate, shaken: bool
) -> None:
    service = serve(secure=True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = certificate.client.wrap_bio(incoming, outgoing, server_hostname="mx.test")
    with socket.create_connection(service.address, 20) as wire:
        if shaken:
            heard = b""
            while not heard:
                with suppress(ssl.SSLWantReadError):
                    client.do_handshake()
                    heard = client.read(4096)
                wire.sendall(outgoing.read())
                if not heard:
                    incoming.write(wire.recv(65536))
            client.write(b"NOOP\r\n")
            wire.sendall(outgoing.read()[:9])
        else:
            wire.sendall(greeting_of(certificate))
        for _ in range(2):
            with (
                socket.create_connection(service.address, 5) as raw,
                certificate.client.wrap_socket(raw, server_hostname="mx.test") as other,
            ):
                assert other.recv(4096).startswith(b"220 ")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        pytest.param(b"\x16\x03", "EOF", id="half a header"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", "EOF", id="half a ClientHello"),
        pytest.param(
            b"\x16\x03\x01\xff\xff\x01\x00",
            "PACKET_LENGTH_TOO_LONG|RECORD_LAYER_FAILURE",  # OpenSSL 3.0, and 3.5
            id="too long to be waited for",
        ),
        pytest.param(b"\x16\x03\x01\x00\x00", "BAD_LENGTH|EOF|LENGTH", id="nothing in it"),
        pytest.param(b"EHLO client.test\r\n", "WRONG_VERSION_NUMBER", id="SMTP"),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", "HTTP_REQUEST", id="HTTP"),
        pytest.param(b"\x16\x03\x01\x00\x05hello", "UNEXPECTED_MESSAGE|LENGTH|EOF", id="nonsense"),
    ],
)
def test_failed_handshake_is_one_log_line(
    serve: Serve, caplog: pytest.LogCaptureFixture, said: bytes, reason: str
) -> None:
    caplog.set_level(logging.DEBUG)
    service = serve(secure=True)
    with socket.create_connection(service.address, 20) as wire:
        wire.sendall(said)
        with suppress(OSError):  # where all was said the reset may be here already
            wire.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while data := wire.recv(4096):
                assert not data.startswith(b"220")
    service.settle()
    (line,) = [record.getMessage() for record in caplog.records if record.name != "asyncio"]
    who = r"127\.0\.0\.1 connection \[[0-9A-F]{10}\]"
    assert re.fullmatch(rf"{who} TLS handshake failed: .*({reason}).*", line)
    assert service.cells[CELL_INDEX["tls_failed"]] == 1


@pytest.mark.parametrize("length", [3, 100, 0xFFFF])
def test_reset_during_a_handshake_closes_the_connection(
    serve: Serve, certificate: Certificate, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    """As port scanners do."""
    caplog.set_level(logging.DEBUG)
    service = serve(secure=True)
    with socket.create_connection(service.address, 20) as wire:
        wire.sendall(greeting_of(certificate)[:length])
        wait_for(lambda: service.open(), "it is there")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    service.settle()
    (line,) = [record.getMessage() for record in caplog.records if record.name != "asyncio"]
    assert line.partition("] ")[2].startswith("TLS handshake failed: reset: [Err")


@pytest.mark.parametrize("reset", [False, True])
def test_connection_that_is_closed_before_a_handshake_is_a_probe(
    serve: Serve, caplog: pytest.LogCaptureFixture, reset: bool
) -> None:
    """HAProxy checks so whether the port is open."""
    caplog.set_level(logging.DEBUG)
    service = serve(secure=True)
    with socket.create_connection(service.address, 20) as wire:
        wait_for(lambda: service.open(), "it is there")
        if reset:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    service.settle()
    assert [record.getMessage() for record in caplog.records if record.name != "asyncio"] == []
    assert service.cells[CELL_INDEX["tls_failed"]] == 0
    assert service.cells[CELL_INDEX["closed_without_command"]] == 1


@pytest.mark.parametrize(
    ("said", "violations"),
    [
        ((), 0),
        ((b"QUIT\r\n",), 0),
        ((b"QU", b"IT\r\n"), 0),
        ((b"EHLO client.test\r\n",), 1),
        ((b"NO", b"OP\r\n"), 1),
    ],
)
def test_client_that_goes_on_after_421_under_tls_is_told_from_one_that_leaves(
    serve: Serve, said: tuple[bytes, ...], violations: int
) -> None:
    service = serve("--mode=unavailable", secure=True)
    with SMTPClient(service.address, read_greeting=False) as client:
        client.start_tls()
        assert client.read_reply()[:3] == "421"
        for segment in said:
            time.sleep(0.05)
            client.send(segment)
        assert client.read_reply() == ""  # close_notify (RFC 8446 6.1): else this raises ssl.SSLError
        client.send(b"")
        assert isinstance(client.socket, ssl.SSLSocket)
        with suppress(OSError):
            client.socket.unwrap()
    service.settle()
    assert service.cells[VIOLATIONS_START + VIOLATION_NUMBERS["talk-after-421"]] == violations
    assert service.cells[VIOLATIONS_START + VIOLATION_NUMBERS["no-quit"]] == 0


def test_handshake_continues_when_the_socket_is_writable_again(
    serve: Serve, certificate: Certificate
) -> None:
    """The answer to a ClientHello finds the socket's buffer full, and the client reads on later."""
    service = serve(secure=True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = certificate.client.wrap_bio(incoming, outgoing, server_hostname="mx.test")
    with socket.create_connection(service.address, 20) as wire:
        with suppress(ssl.SSLWantReadError):
            client.do_handshake()
        wait_for(lambda: service.open(), "it is there")
        (connection,) = service.server.connections
        ahead = 0

        def fill() -> None:
            nonlocal ahead
            with suppress(BlockingIOError):
                while True:
                    ahead += connection.stream.socket.send(b"x" * 65536)
            with suppress(BlockingIOError):
                while True:
                    ahead += connection.stream.socket.send(b"x")

        service.do(fill)
        wire.sendall(outgoing.read())
        wait_for(lambda: isinstance(connection.stream.socket, ssl.SSLSocket), "it has begun")
        while ahead:
            ahead -= len(wire.recv(min(ahead, 65536)))
        heard = b""
        while not heard:
            incoming.write(wire.recv(65536))
            with suppress(ssl.SSLWantReadError):
                client.do_handshake()
                heard = client.read(4096)
            wire.sendall(outgoing.read())
        assert heard.startswith(b"220 ")


RULES = """
[[rule]]
phase = "MAIL"
sender = "reply@example.com"
reply = "421 4.3.2 Later"

[[rule]]
phase = "MAIL"
sender = "close@example.com"
reply = "451 4.3.0 Later"
then = "close-after-reply"

[[rule]]
phase = "MAIL"
sender = "drip@example.com"
reply = "421 4.3.2 Later"
then = { drip = 100 }
"""

ENDS = {
    "421 of a rule": b"MAIL FROM:<reply@example.com>\r\n",
    "a rule that closes": b"MAIL FROM:<close@example.com>\r\n",
    "421 in drops": b"MAIL FROM:<drip@example.com>\r\n",
    "a limit on errors": b"XYZZY\r\n" * 3,
    "BDAT": b"BDAT LAST\r\n",
    "HTTP": b"GET / HTTP/1.0\r\n\r\n",
    "a header line": b"Subject: test\r\n",
    "a line without an end": b"x" * 70000,
    "QUIT": b"QUIT\r\n",
    "a timeout": b"MAIL FROM:<ann@example.com>\r\n",
}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("end", ENDS)
def test_close_notify_comes_before_the_end_of_a_connection(
    serve: Serve, certificate: Certificate, tmp_path: Path, end: str, version: ssl.TLSVersion
) -> None:
    """RFC 8446 6.1: without it, nobody knows whether the last reply was cut off."""
    scenario = tmp_path / "rules.toml"
    scenario.write_text(RULES)
    seconds = "--timeout=3" if end == "a timeout" else "--timeout=1000"
    service = serve(
        f"--scenario={scenario}",
        "--client_connections=9",
        "--max_errors=3",
        "--trusted=none",
        seconds,
        secure=True,
    )
    context = ssl.create_default_context(cafile=certificate.ca)
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(service.address, 20) as wire,
        context.wrap_socket(wire, server_hostname="mx.test", suppress_ragged_eofs=False) as client,
    ):
        assert client.recv(4096).startswith(b"220 ")
        client.sendall(ENDS[end])
        while client.recv(4096):  # raises SSLEOFError where there is no close_notify
            pass


OLD_TLS = """
[[rule]]
phase = "MAIL"
tls_version = "< 1.3"
reply = "530 5.7.0 Use TLS 1.3"
[[rule]]
phase = "MAIL"
not = { tls_version = ["1.2", "TLSv1.3"] }
reply = "530 5.7.0 Use TLS"
"""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_rules_know_the_version_of_tls(
    serve: Serve, certificate: Certificate, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    scenario = tmp_path / "rules.toml"
    scenario.write_text(OLD_TLS)
    service = serve(
        f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", f"--scenario={scenario}"
    )
    context = ssl.create_default_context(cafile=certificate.ca)
    context.minimum_version = context.maximum_version = version
    with socket.create_connection(service.address, 20) as wire:
        assert wire.recv(4096).startswith(b"220 ")
        wire.sendall(b"MAIL FROM:<ann@example.com>\r\n")
        assert wire.recv(4096) == b"530 5.7.0 Use TLS\r\n"
        wire.sendall(b"STARTTLS\r\n")
        assert wire.recv(4096).startswith(b"220 ")
        with context.wrap_socket(wire, server_hostname="mx.test") as client:
            client.sendall(b"MAIL FROM:<ann@example.com>\r\n")
            old = version is ssl.TLSVersion.TLSv1_2
            assert client.recv(4096)[:3] == (b"530" if old else b"250")


@pytest.mark.parametrize("said", [b"", b"EHLO client.test\r\nMAIL FROM:<ann@example.com>\r\n"])
def test_close_notify_is_answered_with_close_notify(
    serve: Serve, certificate: Certificate, said: bytes
) -> None:
    service = serve(secure=True)
    with (
        socket.create_connection(service.address, 20) as wire,
        certificate.client.wrap_socket(wire, server_hostname="mx.test", suppress_ragged_eofs=False) as client,
    ):
        assert client.recv(4096).startswith(b"220 ")
        client.sendall(said)
        if said:
            assert client.recv(4096)
            time.sleep(0.1)
        with suppress(ssl.SSLWantReadError):
            client.unwrap()  # raises SSLEOFError where there is no answer


def test_errors_about_certificates_name_the_part_that_is_missing(
    certificate: Certificate, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing\n")
    for cert, key, wanted in (
        (certificate.cert, str(empty), f"there is no private key in {empty}; it must be in PEM"),
        (str(empty), certificate.key, f"there is no certificate in {empty}; it must be in PEM"),
        (certificate.key, "", f"there is no certificate in {certificate.key}; it must be in PEM"),
    ):
        with pytest.raises(OperatorError) as raised:
            make_context(read_certificate(cert, key))
        assert str(raised.value) == wanted
