"""Every transcript, played with the real program: parsed options, a master, forked workers, real sockets."""

from __future__ import annotations

import itertools
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from blackhole.option_table import LISTENER_SETTINGS
from tests.certificates import Certificate
from tests.program import Program, free_port, free_ports
from tests.transcript import SocketPeer, Transcript, all_transcripts, play

LISTENERS_OF_A_PROGRAM = 32


class ListenerOfTranscripts(NamedTuple):
    """A listener for all transcripts that need the same program and the same settings."""

    settings: tuple[str, ...]
    """As behind the address in --listen, with `<cert>` and `<key>`."""
    scenario: str

    def line(self, port: int, folder: Path, certificate: Certificate) -> str:
        """Return the value of --listen. Write the scenario into the folder."""
        words = [
            one.replace("<cert>", certificate.cert).replace("<key>", certificate.key) for one in self.settings
        ]
        if self.scenario:
            file = folder / f"{port}.toml"
            file.write_text(self.scenario, "utf-8")
            words.append(f"scenario={file}")
        return ",".join([f"127.0.0.1:{port}", *words])


class ProgramOfTranscripts(NamedTuple):
    """A program whose listeners differ in all that one listener may set for itself."""

    options: tuple[str, ...]
    listeners: tuple[ListenerOfTranscripts, ...]
    accelerators: str


class PlayedTranscript(NamedTuple):
    """A transcript that is played at one listener of one program.

    It differs from that at any other program. Otherwise pytest would play a transcript with one program
    after the other, and start both anew for each.
    """

    program: ProgramOfTranscripts
    listener: ListenerOfTranscripts
    transcript: Transcript


def needs(transcript: Transcript) -> tuple[tuple[str, ...], ListenerOfTranscripts]:
    """Return the options of a transcript that hold for a whole program, and its listener."""
    options = []
    settings = ["tls"] if transcript.implicit_tls else []
    for option in transcript.options:
        name, _, value = option.removeprefix("--").partition("=")
        if name == "listen":
            settings += value.split(",")[1:]
        elif name in LISTENER_SETTINGS:
            settings.append(option.removeprefix("--"))
        else:
            options.append(option)
    return tuple(options), ListenerOfTranscripts(tuple(settings), transcript.scenario)


def transcripts_by_program() -> Iterator[object]:
    """Yield each transcript as it is played, with its program."""
    found: dict[tuple[str, ...], dict[ListenerOfTranscripts, list[Transcript]]] = {}
    for one in all_transcripts():
        options, listener = needs(one)
        found.setdefault(options, {}).setdefault(listener, []).append(one)
    for options, transcripts in found.items():
        for first in range(0, len(transcripts), LISTENERS_OF_A_PROGRAM):
            listeners = tuple(transcripts)[first : first + LISTENERS_OF_A_PROGRAM]
            for name, accelerators in (("fast", ""), ("simple", "off")):
                program = ProgramOfTranscripts(options, listeners, accelerators)
                for listener in listeners:
                    for one in transcripts[listener]:
                        played = PlayedTranscript(program, listener, one)
                        yield pytest.param(program, played, id=f"{one}-{name}")


@pytest.fixture(scope="module")
def ports(
    request: pytest.FixtureRequest, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[ListenerOfTranscripts, int]]:
    """Start a program and return the ports of its listeners. It must stop without an error."""
    options, listeners, accelerators = request.param
    folder = tmp_path_factory.mktemp("scenarios")
    ports = dict(zip(listeners, free_ports(len(listeners)), strict=True))
    lines = (f"--listen={one.line(port, folder, certificate)}" for one, port in ports.items())
    with Program(
        "--hostname=mx.test", *options, *lines, env={"BLACKHOLE_ACCELERATORS": accelerators}
    ) as program:
        yield ports
        assert program.stop() == 0, program.output()
        assert "Traceback" not in program.output()


@pytest.mark.parametrize(
    ("ports", "played"), list(transcripts_by_program()), indirect=["ports"], scope="module"
)
def test_program_replies_as_the_transcript_expects(
    ports: dict[ListenerOfTranscripts, int], played: PlayedTranscript, certificate: Certificate
) -> None:
    with SocketPeer(("127.0.0.1", ports[played.listener]), certificate.client) as peer:
        play(played.transcript, peer)


# What a transcript cannot express.


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
def test_tls_session_is_resumed_by_any_worker(version: ssl.TLSVersion, certificate: Certificate) -> None:
    """The key of the session tickets is made before the fork."""
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
                # TLS 1.3 sends its tickets after the handshake, at the latest with the greeting.
                assert client.recv(4096).startswith(b"220 ")
                reused.append(client.session_reused)
                session = client.session
        assert reused == [False] + 19 * [True]
        assert program.stop() == 0


def test_debug_logs_every_line_and_no_client_can_forge_one() -> None:
    with Program("--debug", "--hostname=mx.test", "--workers=1") as program:
        with socket.create_connection(program.address, 20) as client:
            client.sendall(b"NOOP \x1b[31m\xc3\xa9 \\x00 \x7f\r\nDATA\r\nbody\r\x00\n\xff\r\n.\r\nQUIT\r\n")
            while client.recv(4096):
                pass
        assert program.stop() == 0
        lines = re.findall(r"\[([0-9A-F]{10})\] (RECV|SEND): (.*)", program.output())
    assert [(way, text) for _, way, text in lines if "queued as" not in text] == [
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
    # The accepted transaction, with its reply, and what follows it have different ids.
    assert len({number for number, _, _ in lines}) == 2
    (accepted,) = (text for _, _, text in lines if "queued as" in text)
    assert accepted == f"250 2.0.0 OK: queued as {lines[0][0]}"


@pytest.mark.parametrize("options", [(), ("--delay=0.05",)])
def test_debug_names_client_connection_and_transaction_in_each_line(
    certificate: Certificate, options: tuple[str, ...]
) -> None:
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}")
    with Program("--debug", "--hostname=mx.test", "--workers=1", *tls, *options) as program:
        for _ in range(2):
            with smtplib.SMTP(*program.address, timeout=20) as client:
                client.starttls(context=certificate.client)
                for _ in range(2):
                    client.sendmail("ann@example.com", ["bob@example.com"], "Subject: a test\n\nHello\n")
        assert program.stop() == 0
        lines = re.findall(
            r"DEBUG 127\.0\.0\.1 connection \[(.{10})\] transaction \[(.{10})\] (RECV|SEND): (.*)",
            program.output(),
        )
    for one, other in itertools.pairwise(lines):
        if other[2] == "SEND" and not other[3].endswith("ESMTP Blackhole"):  # A reply to a command
            assert one[:2] == other[:2]
    connections = [connection for connection, *_ in lines]
    assert connections == sorted(connections, key=connections.index)
    assert len(set(connections)) == 2
    assert len([text for *_, text in lines if text.startswith("ehlo")]) == 4
    for number, text in [(number, text) for _, number, _, text in lines if "queued as" in text]:
        first, *_, last = [text for _, its_number, _, text in lines if its_number == number]
        assert first.upper().startswith("MAIL FROM:<ANN@EXAMPLE.COM>")
        assert last == text == f"250 2.0.0 OK: queued as {number}"
