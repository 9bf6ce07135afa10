"""Every transcript against the real program: parsed options, a master, forked workers, real sockets."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from conftest import Certificate
from program import Program, free_port
from transcript import Transcript, Wire, every, play


class Served(Program):
    """The program with a transcript's options, and a port where TLS comes first if it has a certificate."""

    def __init__(self, transcript: Transcript, certificate: Certificate) -> None:
        self.secure = ("127.0.0.1", free_port())
        implicit = [f"--ssl_port={self.secure[1]}"] if transcript.certified else []
        super().__init__(*transcript.argv(certificate.cert, certificate.key), *implicit)


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest, certificate: Certificate) -> Iterator[Served]:
    """One program for all transcripts with the same options; it must end well."""
    with Served(request.param, certificate) as program:
        yield program
        assert program.stop() == 0, program.output()
        assert "Traceback" not in program.output()


def served() -> list[object]:
    """The transcripts, each with the first that has the same options, so that pytest groups them by that."""
    first: dict[tuple[str, ...], Transcript] = {}
    return [
        pytest.param(first.setdefault((*one.options, one.scenario), one), one, id=str(one)) for one in every()
    ]


@pytest.mark.parametrize(("program", "transcript"), served(), indirect=["program"], scope="module")
def test_on_the_program(program: Served, transcript: Transcript, certificate: Certificate) -> None:
    address = program.secure if transcript.implicit else program.address
    with Wire(address, certificate.client) as wire:
        play(transcript, wire)


# What a transcript cannot say.


def test_listeners_have_their_own_mode_and_delay() -> None:
    ports = [free_port() for _ in range(3)]
    options = [
        f"127.0.0.1:{ports[0]}",
        f"127.0.0.1:{ports[1]},mode=unavailable",
        f"[::1]:{ports[2]},delay=0.2",
    ]
    with Program("--workers=2", *(f"--listen={option}" for option in options)) as program:
        with smtplib.SMTP("127.0.0.1", ports[0], timeout=20) as client:
            assert client.noop()[0] == 250
        with pytest.raises(smtplib.SMTPConnectError, match="421"):
            smtplib.SMTP("127.0.0.1", ports[1], timeout=20)
        with smtplib.SMTP("::1", ports[2], timeout=20) as client:
            began = time.monotonic()
            assert client.noop()[0] == 250
            assert time.monotonic() - began >= 0.2
        assert program.stop() == 0


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_tls_resumes_with_any_worker(version: ssl.TLSVersion, certificate: Certificate) -> None:
    """The key of the session tickets was made before the fork."""
    context = ssl.create_default_context(cafile=certificate.ca)
    context.maximum_version = context.minimum_version = version
    port = free_port()
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}", f"--ssl_port={port}")
    with Program("--workers=3", *tls) as program:
        session = None
        reused = []
        for _ in range(20):
            plain = socket.create_connection(("127.0.0.1", port), 20)
            with context.wrap_socket(plain, server_hostname="mx.test", session=session) as client:
                # TLS 1.3 sends its tickets behind the handshake, with the greeting at the latest.
                assert client.recv(4096).startswith(b"220 ")
                reused.append(client.session_reused)
                session = client.session
        assert reused == [False] + 19 * [True]
        assert program.stop() == 0


def test_debug_logs_every_line_and_no_line_is_forged() -> None:
    with Program("--debug", "--hostname=mx.test", "--workers=1") as program:
        with socket.create_connection(program.address, 20) as client:
            client.sendall(b"NOOP \x1b[31m\xc3\xa9 \\x00 \x7f\r\nDATA\r\nbody\r\x00\n\xff\r\n.\r\nQUIT\r\n")
            while client.recv(4096):
                pass
        assert program.stop() == 0
        lines = re.findall(r"\[([0-9A-F]{10})\] (RECV|SEND): (.*)", program.output())
    assert [(way, said) for _, way, said in lines if "queued as" not in said] == [
        ("SEND", "220 mx.test ESMTP Blackhole"),
        ("RECV", r"NOOP \x1b[31m\xc3\xa9 \\x00 \x7f"),
        ("SEND", "250 2.0.0 OK"),
        ("RECV", "DATA"),
        ("SEND", "354 Start mail input; end with <CRLF>.<CRLF>"),
        ("RECV", "body"),
        ("RECV", r"\x00"),
        ("RECV", r"\xff"),
        ("RECV", "."),
        ("RECV", "QUIT"),
        ("SEND", "221 2.0.0 Goodbye"),
    ]
    # The transaction that was taken has another id than what follows it.
    assert len({number for number, _, _ in lines}) == 2
    (taken,) = (said for _, _, said in lines if "queued as" in said)
    assert taken == f"250 2.0.0 OK: queued as {lines[0][0]}"
