"""The PROXY protocol: who may speak it, what is taken for a header, and that nothing else is answered."""

from __future__ import annotations

import builtins
import logging
import os
import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackhole.addresses import local_address
from blackhole.net import proxy
from blackhole.settings import ACCELERATORS, OperatorError
from tests.certificates import Certificate
from tests.external_programs import output_of, path_of, requires
from tests.program import Program, free_port, run, status
from tests.service import Serve, Service
from tests.smtp_client import read_until_closed
from tests.transcript import REPLY_TIMEOUT

pytest.importorskip("proxyprotocol")

V2 = b"\r\n\r\n\0\r\nQUIT\n"


def v2(
    command: int = 0x21, family: int = 0x11, body: bytes | None = None, length: int | None = None
) -> bytes:
    """A header of version 2: by default 192.0.2.9 connects over TCP."""
    if body is None:
        body = bytes((192, 0, 2, 9, 127, 0, 0, 1)) + struct.pack("!HH", 4711, 25)
    return V2 + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


SIX = socket.inet_pton(socket.AF_INET6, "2001:db8::9") + bytes(16) + struct.pack("!HH", 4711, 25)
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.9")
TLV = bytes((192, 0, 2, 9, 127, 0, 0, 1)) + struct.pack("!HH", 4711, 25) + b"\x04\0\x05xxxxx"

GOOD = {
    "v1": (b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 25\r\n", "192.0.2.9"),
    "v1 six": (b"PROXY TCP6 2001:db8::9 ::1 4711 25\r\n", "2001:db8::9"),
    "v1 mapped": (b"PROXY TCP6 ::ffff:192.0.2.9 ::ffff:127.0.0.1 4711 25\r\n", "192.0.2.9"),
    "v1 mapped in digits": (b"PROXY TCP6 0:0:0:0:0:FFFF:C000:0209 ::1 4711 25\r\n", "192.0.2.9"),
    "v2 mapped": (v2(family=0x21, body=MAPPED + SIX[16:]), "192.0.2.9"),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", ""),
    "v1 unknown with addresses": (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", ""),
    "v2": (v2(), "192.0.2.9"),
    "v2 six": (v2(family=0x21, body=SIX), "2001:db8::9"),
    "v2 local": (v2(command=0x20, family=0, body=b""), ""),
    "v2 local with addresses": (v2(command=0x20), ""),
    "v2 unspecified": (v2(family=0, body=b""), ""),
    "v2 unix": (v2(family=0x31, body=b"/a".ljust(108, b"\0") * 2), ""),
    "v2 with extensions": (v2(body=TLV), "192.0.2.9"),
    "v2 of the greatest length": (
        v2(body=TLV[:12] + b"\x04" + struct.pack("!H", 2033) + bytes(2033)),
        "192.0.2.9",
    ),
}

BAD = {
    "none": b"EHLO client.test\r\n",
    "tls": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
    "another word": b"PROXX TCP4 192.0.2.9 127.0.0.1 4711 25\r\n",
    "small letters": b"proxy TCP4 192.0.2.9 127.0.0.1 4711 25\r\n",
    "another family": b"PROXY TCP5 192.0.2.9 127.0.0.1 4711 25\r\n",
    "no address": b"PROXY TCP4 mx.test 127.0.0.1 4711 25\r\n",
    "the other family's": b"PROXY TCP4 2001:db8::9 ::1 4711 25\r\n",
    "no port": b"PROXY TCP4 192.0.2.9 127.0.0.1 x 25\r\n",
    "a great port": b"PROXY TCP4 192.0.2.9 127.0.0.1 65536 25\r\n",
    "too little": b"PROXY TCP4 192.0.2.9\r\n",
    "too much": b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 25 26\r\n",
    "bare lf": b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 25\n",
    "a long line": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "no end": b"PROXY TCP4 " + b"1" * 200,
    "another version": v2(command=0x31),
    "another command": v2(command=0x22),
    "too short for its family": v2(body=b"\xc0\0\2\x09"),
    "too short for six": v2(family=0x21, body=SIX[:20]),
    "too long": v2(length=2049) + bytes(2049),
    "far too long": v2(length=65535) + bytes(65535),
}


class Chunks:
    """A source whose octets come in pieces."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size = data, size
        self.there = 0

    async def peek(self, most: int) -> bytes:
        if not self.there:
            self.there = min(self.size, len(self.data))
        return self.data[: min(self.there, most)]

    def consume(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        self.there -= count
        return taken


def read(data: bytes, size: int) -> tuple[str, bytes]:
    """The address, and what is left for the session."""
    source = Chunks(data, size)
    work = proxy.read_header(source, proxy.make_parser())
    try:
        work.send(None)
    except StopIteration as end:
        return str(end.value), source.data
    raise AssertionError("it waits for what it was given")


@pytest.mark.parametrize("size", [1, 7, 100000])
@pytest.mark.parametrize("header", GOOD)
def test_proxy_header_is_read_without_the_octets_behind_it(header: str, size: int) -> None:
    data, address = GOOD[header]
    assert read(data + b"\x16\x03\x01\n", size) == (address, b"\x16\x03\x01\n")


@pytest.mark.parametrize("size", [1, 7, 100000])
@pytest.mark.parametrize("header", BAD)
def test_invalid_proxy_header_is_rejected(header: str, size: int) -> None:
    refused = False
    try:
        read(BAD[header], size)
    except ValueError:
        refused = True
    assert refused


@pytest.mark.parametrize("header", GOOD)
def test_truncated_proxy_header_is_rejected(header: str) -> None:
    data, _ = GOOD[header]
    for length in range(len(data)):
        with pytest.raises(ValueError, match="ended before"):
            read(data[:length], 100000)
        if length > 200:
            break


@settings(deadline=None, max_examples=500)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=100).map(lambda rest: b"PROXY " + rest + b"\r\n"),
        st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=300)).map(
            lambda given: v2(*given)
        ),
    )
)
def test_random_octets_raise_nothing_but_a_rejection(data: bytes) -> None:
    with suppress(ValueError):
        read(data, 100000)


# On sockets


@pytest.fixture(params=[ACCELERATORS, frozenset()], ids=["fast", "simple"])
def accelerators(request: pytest.FixtureRequest) -> frozenset[str]:
    """Run each test with all accelerators, and with none."""
    return frozenset(request.param)


def front(serve: Serve, *argv: str, secure: bool = False) -> Service:
    return serve("--listen=127.0.0.1:0,proxy", "--proxy_from=127.0.0.0/8", *argv, secure=secure)


def heard(service: Service, said: bytes, pause: float = 0) -> bytes:
    """All that a client hears who says this."""
    with socket.create_connection(service.address, REPLY_TIMEOUT) as client:
        client.sendall(said)
        time.sleep(pause)
        return read_until_closed(client)


@pytest.mark.parametrize("header", ["v1", "v1 six", "v1 unknown", "v2", "v2 six", "v2 local"])
def test_session_behind_a_proxy_header_works_as_usual(serve: Serve, header: str) -> None:
    service = front(serve)
    said = heard(service, GOOD[header][0] + b"HELO client.test\r\nQUIT\r\n")
    assert said == b"220 mx.test ESMTP Blackhole\r\n250 mx.test\r\n221 2.0.0 Goodbye\r\n"


def test_server_sends_nothing_before_the_proxy_header(serve: Serve) -> None:
    service = front(serve, "--proxy_timeout=3")
    with socket.create_connection(service.address, 0.2) as client:
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(REPLY_TIMEOUT)
        client.sendall(GOOD["v1"][0][:20])
        time.sleep(0.1)
        client.sendall(GOOD["v1"][0][20:])
        assert client.recv(4096).startswith(b"220 ")


@pytest.mark.parametrize("header", ["none", "tls", "bare lf", "no end", "too long"])
def test_connection_without_a_proxy_header_is_closed_silently(serve: Serve, header: str) -> None:
    assert heard(front(serve), BAD[header]) == b""


def test_unreadable_header_is_logged_once_a_minute_for_each_proxy(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(proxy.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(proxy, "MAX_PROXIES", 2)
    caplog.set_level(logging.INFO)
    errors = proxy.HeaderErrorLog()
    for seconds, address in ((0, "192.0.2.1"), (59, "192.0.2.1"), (0, "192.0.2.2"), (1, "192.0.2.1")):
        now[0] += seconds
        errors.add(address, ValueError("wrong"))
    errors.add("192.0.2.3", ValueError("wrong"))
    errors.add("192.0.2.4", ValueError("wrong"))  # The others are forgotten.
    errors.add("192.0.2.1", ValueError("wrong"))
    errors.add("192.0.2.9", proxy.NoHeader())
    numbers = [record.getMessage().split()[4] for record in caplog.records]
    assert numbers == [f"192.0.2.{number}" for number in (1, 2, 1, 3, 4, 1)]


def test_header_that_ends_with_lf_alone_is_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    service = front(serve)
    for header in ("bare lf", "bare lf", "none"):
        assert heard(service, BAD[header]) == b""
    assert heard(service, GOOD["v1"][0] + b"QUIT\r\n").startswith(b"220 ")
    lines = [record.getMessage() for record in caplog.records if "PROXY" in record.getMessage()]
    assert lines == ["the PROXY header of 127.0.0.1 cannot be read: its line ends with LF alone"]


def test_ipv4_client_of_a_dual_stack_socket_is_a_client_of_ipv4(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    dual = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    dual.setblocking(False)
    monkeypatch.setattr("tests.service.bind", lambda listener, backlog: [dual])
    service = serve("--listen=127.0.0.1:0")
    with socket.create_connection(("127.0.0.1", service.address[1]), REPLY_TIMEOUT) as client:
        assert client.recv(4096).startswith(b"220 ")
        (connection,) = service.server.connections
        assert (connection.peer, connection.session.client) == ("127.0.0.1", "127.0.0.1")
        name = connection.stream.socket.getsockname()
        assert local_address(name) == local_address(client.getpeername()) == f"127.0.0.1 {name[1]}"
    assert local_address("") == ""


def test_missing_proxy_header_times_out(serve: Serve) -> None:
    service = front(serve, "--proxy_timeout=3", "--timeout=10000")
    began = time.monotonic()
    assert heard(service, b"") == b""
    assert heard(service, b"PROXY TCP4") == b""
    assert time.monotonic() - began < 10


def test_partial_proxy_header_costs_no_cpu_time(serve: Serve) -> None:
    service = front(serve, "--proxy_timeout=20")
    with socket.create_connection(service.address, REPLY_TIMEOUT) as client:
        client.sendall(b"PRO")
        time.sleep(0.2)
        before = time.process_time()
        time.sleep(1)
        assert time.process_time() - before < 0.5


def test_client_outside_proxy_from_is_closed(serve: Serve) -> None:
    service = serve("--listen=127.0.0.1:0,proxy", "--proxy_from=192.0.2.0/24 ::1/128")
    assert heard(service, GOOD["v1"][0]) == b""


def test_address_in_the_proxy_header_is_the_one_counted(serve: Serve) -> None:
    """The proxy is trusted, its clients are not for that."""
    service = front(serve, "--client_connections=1")
    with socket.create_connection(service.address, REPLY_TIMEOUT) as first:
        first.sendall(GOOD["v1"][0])
        assert first.recv(4096).startswith(b"220 ")
        assert heard(service, GOOD["v2"][0]).startswith(b"421 4.7.0 ")
        assert heard(service, GOOD["v1 six"][0] + b"QUIT\r\n").startswith(b"220 ")
        assert heard(service, GOOD["v2 local"][0] + b"QUIT\r\n").startswith(b"220 ")


def test_proxy_header_comes_before_implicit_tls(serve: Serve, certificate: Certificate) -> None:
    """In one segment with the ClientHello, which has to reach OpenSSL whole."""
    service = front(serve, secure=True)
    with socket.create_connection(service.address, REPLY_TIMEOUT) as client:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = certificate.client.wrap_bio(incoming, outgoing, server_hostname="mx.test")
        with pytest.raises(ssl.SSLWantReadError):
            secure.do_handshake()
        client.sendall(GOOD["v2 with extensions"][0] + outgoing.read())
        said = b""
        while not said:
            incoming.write(client.recv(65536))
            with suppress(ssl.SSLWantReadError):
                secure.do_handshake()
                said = secure.read(4096)
            client.sendall(outgoing.read())
        assert said.startswith(b"220 ")


def test_connections_without_a_proxy_header_cost_little_memory() -> None:
    port = free_port()
    with Program(
        "--workers=1", f"--listen=127.0.0.1:{port},proxy", "--proxy_from=127.0.0.1", "--proxy_timeout=60"
    ) as program:
        (worker,) = program.workers()
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        time.sleep(0.2)
        before = int(status(worker)["VmRSS"].split()[0])
        clients += [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        for client in clients:
            client.sendall(v2(length=2048) + bytes(2000))
        time.sleep(0.5)
        assert int(status(worker)["VmRSS"].split()[0]) - before < 200 * 16
        for client in clients:
            client.close()


@requires("swaks")
@pytest.mark.parametrize("version", ["1", "2"])
def test_swaks_sends_a_proxy_header(serve: Serve, version: str) -> None:
    service = front(serve, "--client_connections=9")
    output = output_of(
        *(path_of("swaks"), "--server", f"127.0.0.1:{service.address[1]}", "--quit-after", "RCPT"),
        *("--from", "ann@example.com", "--to", "bob@example.com", "--helo", "client.example.com"),
        *("--proxy-version", version, "--proxy-family", "TCP4" if version == "1" else "AF_INET"),
        *("--proxy-source", "192.0.2.9", "--proxy-source-port", "4711"),
        *("--proxy-dest", "127.0.0.1", "--proxy-dest-port", "25"),
        *(("--proxy-protocol", "STREAM", "--proxy-command", "PROXY") if version == "2" else ()),
    )
    assert "<-  250 2.1.5 Recipient OK" in output


# Without the package


def test_missing_proxy_package_is_one_error_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("proxyprotocol"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OperatorError, match=r"needs the package proxy-protocol: pip install") as caught:
        proxy.make_parser()
    assert caught.value.code == os.EX_CONFIG


def test_proxy_listener_without_proxy_from_is_an_error() -> None:
    done = run("--listen=127.0.0.1:0,proxy", "-t")
    assert (done.returncode, done.stdout) == (os.EX_USAGE, "")
    assert "proxy needs proxy_from" in done.stderr


def test_valid_proxy_configuration_is_accepted_and_announced() -> None:
    done = run("--listen=127.0.0.1:2525,proxy", "--proxy_from=192.0.2.0/24", "--print-config")
    assert "#   127.0.0.1:2525, mode accept, behind a proxy" in done.stdout
