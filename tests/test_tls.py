"""TLS as OpenSSL's own client sees it: what is spoken, and what a client cannot get away with."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Certificate
from program import Program, free_port
from service import Serve

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


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
def test_what_is_spoken(
    secure: tuple[Program, int], certificate: Certificate, version: str, first: bool
) -> None:
    program, port = secure
    options = [] if first else ["-starttls", "smtp"]
    output = s_client(port if first else program.port, version, "-CAfile", certificate.ca, *options)
    assert "Verify return code: 0 (ok)" in output
    assert "221 2.0.0 Goodbye" in output
    assert "Compression: NONE" in output


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_what_is_too_old(secure: tuple[Program, int], version: str) -> None:
    output = s_client(secure[1], version, "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in output
    assert "220 " not in output


@pytest.mark.parametrize(
    "cipher", ["aNULL", "eNULL", "RC4", "3DES", "EXPORT", "MD5", "PSK", "SRP", "kRSA", "SHA256"]
)
def test_what_is_too_weak(secure: tuple[Program, int], cipher: str) -> None:
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


def test_what_protocol_it_is(secure: tuple[Program, int]) -> None:
    """ALPACA: a browser that was led here is told, if it asks, that this is no web server."""
    assert "ALPN protocol: smtp" in s_client(secure[1], "-alpn", "smtp")
    assert "ALPN protocol: http" not in s_client(secure[1], "-alpn", "http/1.1")


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_a_session_is_resumed_by_whichever_worker(
    secure: tuple[Program, int], tmp_path: Path, version: str
) -> None:
    ticket = str(tmp_path / "ticket")
    assert "New, TLS" in s_client(secure[1], version, "-sess_out", ticket)
    assert all("Reused, TLS" in s_client(secure[1], version, "-sess_in", ticket) for _ in range(4))


def test_nothing_is_said_between_the_reply_and_the_handshake(serve: Serve, certificate: Certificate) -> None:
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


def test_a_handshake_in_pieces_is_none_the_worse(serve: Serve, certificate: Certificate) -> None:
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
